"""A checkpoint ready to be fed vectors: loading, its own self-check, embedding, cache, output head."""
