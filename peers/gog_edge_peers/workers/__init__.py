"""What runs inside a peer's environment: no import of gog_edge, only the peer's packages and the standard library."""
