"""Several workers that build one store together: who builds which chunk, and when it is sealed."""
