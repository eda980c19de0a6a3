"""Programs that the Makefile and CI run, and what the tests share with them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
