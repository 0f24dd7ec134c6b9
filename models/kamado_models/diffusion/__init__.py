"""Pipelines of diffusers: pictures, and whatever else they make, by their own unmodified code."""
