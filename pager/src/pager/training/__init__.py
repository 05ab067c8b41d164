"""Training loop, batches and the tiny base model."""
