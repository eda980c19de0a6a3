"""Other programs that run the same conversations: each in its own process and its own environment."""
