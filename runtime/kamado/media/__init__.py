"""From model output to what a person can use: text, pictures, sound, files."""
