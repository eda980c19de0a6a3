"""Checkpoints of random weights in the layout of published ones, for tests and benchmarks."""
