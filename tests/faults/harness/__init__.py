"""The fault harness: damage on purpose, counted. `python -m tests.faults` (or `make faults`) runs it."""
