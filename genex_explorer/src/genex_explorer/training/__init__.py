"""Training of the UNet: options, noisy batches, the loop, validation, checkpoints."""
