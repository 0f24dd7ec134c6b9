"""Chains: models of one runtime, one after the other, what one makes going into the next."""
