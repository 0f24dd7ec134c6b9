"""Measuring loaded models through the public API, and how much of what the device can do they reach."""
