"""Reading HF checkpoints: where they lie, their shards, adapters, integer formats, tokenizer files."""
