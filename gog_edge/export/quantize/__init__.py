"""How weights become integers, and how well each way does it."""
