"""The published training code's datamodule, its rows and its arguments."""
