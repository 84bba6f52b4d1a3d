"""The demo: its data, its tiny checkpoints, and the commands that it runs."""
