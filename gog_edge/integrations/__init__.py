"""Adapters to other people's programs, each behind an extra of its own."""
