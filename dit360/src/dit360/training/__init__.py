"""Training of the LoRA (or the whole transformer) with Lightning, and what is taken out of it."""
