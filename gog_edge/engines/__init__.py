"""Inference engines behind one Protocol (`base`); made by name (`registry`)."""

from __future__ import annotations
