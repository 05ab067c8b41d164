"""Scoring of prediction folders against the ground truth of a data set, ours or another's."""
