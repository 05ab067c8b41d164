"""Walks through one 360-degree panorama with Stable Video Diffusion."""
