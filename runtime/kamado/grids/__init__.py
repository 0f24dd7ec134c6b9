"""Thousands of outputs from one model: prompts x seeds x parameters, and sheets that show them side by side."""
