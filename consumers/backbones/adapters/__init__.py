"""Adapters for declared backbones, one per library and modality."""
