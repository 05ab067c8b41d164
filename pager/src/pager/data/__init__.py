"""Data sets: one file each, all yielding the sample dictionary of `panoinfinigen`."""
