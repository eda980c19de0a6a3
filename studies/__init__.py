"""Measurements that were made once, with their results beside them. Not in the wheel: run them from a checkout."""
