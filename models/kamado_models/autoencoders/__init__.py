"""Autoencoders as models of their own."""
