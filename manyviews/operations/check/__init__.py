"""The check before a build: data, models, machine and duration."""
