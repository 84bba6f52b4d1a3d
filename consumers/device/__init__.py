"""Devices, and what their libraries report."""
