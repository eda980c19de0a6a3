"""The agent: the loop around a policy, its tools, searches in flight, deadlines, the camera."""
