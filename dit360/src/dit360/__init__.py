"""DiT360: text to seamless 360-degree panoramas with FLUX and a LoRA (arXiv 2510.11712)."""

from dit360.notices import hold_back_import_notices

hold_back_import_notices()  # here, as whatever imports transformers would let them through
