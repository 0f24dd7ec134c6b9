"""Library code as a task: unmodified code that calls models runs as a coroutine, and the loop makes the calls."""
