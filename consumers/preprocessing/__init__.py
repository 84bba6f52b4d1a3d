"""The inputs that a model expects: pixels, padding, masks and token ids."""
