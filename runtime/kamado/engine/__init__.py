"""Scheduler, loop, session: pick, run, settle. Knows no model family and no modality."""
