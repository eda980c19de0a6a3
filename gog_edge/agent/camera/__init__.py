"""A camera that is watched: its source, the thread that reads it, the newest frame, and the answers about it."""
