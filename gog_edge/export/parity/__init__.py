"""The gate: bundle against transformers. The one place that sees both halves, and torch."""
