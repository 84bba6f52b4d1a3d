"""The progress of a build, read from its store."""
