"""The networks themselves, written from their papers, with the tensor names of the published checkpoints."""
