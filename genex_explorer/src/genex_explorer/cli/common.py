"""What every command shares: flags, one-line errors and exit codes, input images."""

import functools
from collections import Counter
from pathlib import Path

from shared_pano_utils import commands
from shared_pano_utils.commands import Parser

__all__ = ["Parser", "find_inputs", "run_cli"]

run_cli = functools.partial(
    commands.run_cli,
    out_of_memory="use --gradient_checkpointing, --use_8bit_adam or --latent_cache in training; "
    "--offload, a smaller --batch_size or --decode_chunk elsewhere",
)


def find_inputs(sources: list[str]) -> list[Path]:
    """Images of ``--image``: files as they are, folders in natural order.

    Raises:
        FileNotFoundError: a folder holds no image.
        ValueError: two images have the same name, by which results are called.
    """
    from genex_explorer.data.clips import find_images

    images: list[Path] = []
    for source in map(Path, sources):
        found = find_images(source) if source.is_dir() else [source]
        if not found:
            raise FileNotFoundError(
                f"--image {source} holds no image; pass another folder or a file"
            )
        images += found
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"several images are called {stem!r}, which names their results; rename one"
        )
    return images
