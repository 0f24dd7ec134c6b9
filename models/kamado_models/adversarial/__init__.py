"""Generators of adversarial networks, and networks that restore or translate pictures."""
