"""A trace as a file: JSON, the HTML page, Perfetto's events."""
