"""How far a build is."""
