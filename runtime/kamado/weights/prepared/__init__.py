"""Weights in the form that they are run in, kept from one load to the next. See ADR 0019."""
