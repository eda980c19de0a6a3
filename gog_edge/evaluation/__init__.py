"""Evaluation: data sets in their published formats, judges, a resumable parallel runner, reports."""
