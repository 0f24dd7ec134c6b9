"""From what a person types to header data: reference, store, resolve, headers, inspect. No torch, no weights read."""
