"""Families of models for Kamado, and the catalog of known checkpoints."""
