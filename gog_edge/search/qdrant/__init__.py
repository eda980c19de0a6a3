"""The index in a Qdrant server, for what outgrows one SQLite file."""
