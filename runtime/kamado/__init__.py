"""Kamado: a self-hosted runtime for open-weight generative models."""
