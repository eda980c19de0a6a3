"""What the examples ask and with what: the demo's bundle, index and picture, or what the command line names."""

from __future__ import annotations

import argparse
from pathlib import Path

import gog_edge
from gog_edge import library

PICTURE = Path(__file__).resolve().parents[1] / "models" / "gog-nano" / "examples" / "scene.jpg"


def given(question: str, **more: str) -> argparse.Namespace:
    """`bundle`, `index`, `picture` and `question`; and `more` options with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="gog-nano")
    parser.add_argument("--index", default=str(library.directory() / ".demo" / "world.index"))
    parser.add_argument("--picture", default=str(PICTURE))
    parser.add_argument("--question", default=question)
    for name, value in more.items():
        parser.add_argument(f"--{name}", default=value)
    return parser.parse_args()


def agent(args: argparse.Namespace) -> gog_edge.Agent:
    """The policy with its index."""
    return gog_edge.load(args.bundle, index=args.index)
