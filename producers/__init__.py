"""Producers: find the samples and make their views, on CPUs."""
