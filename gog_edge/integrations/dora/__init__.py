"""A node for dora-rs dataflows: `gog-edge dora`."""
