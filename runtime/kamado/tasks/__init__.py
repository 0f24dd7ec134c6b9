"""Kinds of request, as tasks for the loop. Host code only."""
