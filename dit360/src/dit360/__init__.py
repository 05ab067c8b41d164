"""DiT360: text to seamless 360-degree panoramas with FLUX and a LoRA (arXiv 2510.11712)."""
