"""What a model expects of its inputs: pixels, padding, masks and token ids."""
