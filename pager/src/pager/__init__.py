"""Seamless depth and normals for panoramas."""
