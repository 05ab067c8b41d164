"""Clips: extracting them from videos, rendering them, finding, reading and caching them."""
