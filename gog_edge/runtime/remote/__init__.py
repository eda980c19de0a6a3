"""A conversation whose policy runs on a server: text and pictures instead of tokens."""
