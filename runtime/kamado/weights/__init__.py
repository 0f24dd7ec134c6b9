"""Reading weights: streams of tensors, packed block formats, quantization, building on the meta device."""
