"""Training data: reading, checking, preparing and refining panoramas with captions."""
