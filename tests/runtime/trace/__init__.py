"""How traces are written."""
