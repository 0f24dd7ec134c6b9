"""Guessing the tokens to come, so that one forward checks several. No torch: the lane checks, see `sampling.verify`."""
