"""Models that make music and sounds."""
