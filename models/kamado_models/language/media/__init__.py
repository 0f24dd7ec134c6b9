"""Pictures, sounds and videos in prompts."""
