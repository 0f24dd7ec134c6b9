"""Offline generation: a file of requests, each answered exactly once, whatever interrupts it. Imports no torch."""
