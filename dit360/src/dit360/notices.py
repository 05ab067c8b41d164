"""Notices of other packages that tell a user nothing, held back by their words.

Where torchao and bitsandbytes are installed, transformers and diffusers import them in every
command, whether it quantises or not.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What is said at import, by logger.
AT_IMPORT = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported by torch.compile",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
HUB_CLIENT = "huggingface_hub.utils._http"


def hold_back_import_notices() -> None:
    """Drop the notices of `AT_IMPORT` from now on; call it before these packages are imported."""
    for name, words in AT_IMPORT.items():
        logging.getLogger(name).addFilter(
            lambda record, words=words: words not in record.getMessage()
        )


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Hold back the retries of the hub's client, whose failure is one line of ours.

    And a deprecation that diffusers causes in it. Waiting for a rate limit is still announced.
    """
    client = logging.getLogger(HUB_CLIENT)
    client.addFilter(_is_no_retry)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument", UserWarning)
            yield
    finally:
        client.removeFilter(_is_no_retry)


def _is_no_retry(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "thrown while requesting" not in text and not text.startswith("Retrying in")
