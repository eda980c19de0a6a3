"""Dialects: how a policy is asked, how it acts, what it is told, when it stops; data files and a few shared parsers."""

from __future__ import annotations

from gog_edge.dialects.dialect import Dialect
from gog_edge.dialects.registry import DEFAULT, load, names
from gog_edge.dialects.spec import DialectLimits

__all__ = ["DEFAULT", "Dialect", "DialectLimits", "load", "names"]
