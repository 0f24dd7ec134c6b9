"""From logits to tokens, and from text to its end: drawing, penalties, stop strings. Only `sampler` and what it uses
(`adjust`, `truncate`) import torch."""
