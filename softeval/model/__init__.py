"""A checkpoint ready to be fed vectors: loading, its own self-check, embedding, cache, output head."""

from importlib.resources import files

BUNDLED_CHECKPOINT = str(files("softeval") / "checkpoints" / "base")
"""The small checkpoint inside the package."""
