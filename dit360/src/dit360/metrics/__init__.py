"""Evaluation of panoramas: seams, Frechet distances of several views, text alignment."""
