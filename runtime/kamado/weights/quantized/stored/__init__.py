"""Checkpoints that are quantized already: which tensors make up each weight, and how they become one of our forms.

What headers and configurations say is understood without torch (`methods`, and a module for each method); `reading`
and the modules that begin with `unpack` need it.
"""
