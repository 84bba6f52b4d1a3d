"""Checkpoints: where they are, which files they have, and how they are loaded."""
