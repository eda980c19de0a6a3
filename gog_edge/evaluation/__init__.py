"""Evaluation: data-set readers, judges and the runner."""
