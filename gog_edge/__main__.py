"""`python -m gog_edge` is the same as `gog-edge`."""

from gog_edge.cli.main import main

main()
