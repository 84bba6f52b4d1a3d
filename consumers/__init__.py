"""Consumers: turn views into features and put the whole build together."""
