"""The embedded local index: SQLite as source of truth, FTS5 for text, exact or usearch for image vectors."""
