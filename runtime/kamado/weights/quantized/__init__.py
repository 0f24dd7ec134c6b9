"""Weight matrices held in fewer bits: the forms, and the tensor that stands for one in a model."""
