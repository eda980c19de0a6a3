"""`gog-edge bench`: one file a subcommand."""
