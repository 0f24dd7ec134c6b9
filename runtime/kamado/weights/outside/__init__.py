"""Weights that are not held on the device of their model, but read from RAM or disk when they are needed."""
