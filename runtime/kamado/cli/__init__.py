"""The command `kamado`, over the public API only."""
