"""The recipes of image views: presets of random and fixed views, torchvision's, and custom ones."""
