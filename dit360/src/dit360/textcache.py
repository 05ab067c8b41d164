"""Prompt embeddings on disk, so that neither training nor a second run needs the text encoders.

T5-XXL is 9.5 GB and costs 4.8 TFLOP a prompt (spec 12.1). The original encodes every caption again
in every epoch, on one CPU thread in each loader worker (D13). A cached prompt takes 4.2 MB.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from shared_pano_utils.imageio import atomic_path, write_json

MAX_LENGTH = 512  # T5 tokens of FLUX.1-dev
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16
_MODEL_NAME = "model.json"


class TextCache:
    """Embeddings of prompts, one safetensors file each.

    ``<folder>/<fingerprint of the text encoders>/<hash of prompt and length>.safetensors``. The
    same folder serves several models. Where the encoders themselves are not on the disk, a folder
    with the embeddings of one model is used as it is.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | Path | None = None,
        *,
        max_length: int = MAX_LENGTH,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Open a cache; nothing is read or written yet.

        Args:
            folder: of the cache; made when the first prompt is stored.
            model: pipeline folder or hub id whose embeddings are meant; None takes that of the
                pipeline in `encode_all`, or the only one in the folder.
            max_length: tokens of the second text encoder.
            dtype: in which embeddings are stored: bfloat16, float16 or float32.
        """
        self.folder = Path(folder)
        self.max_length = max_length
        self.dtype = dtype
        self._model = None if model is None else str(model)
        self._place: Path | None = None

    def encode_all(self, pipeline: Any, prompts: Iterable[str], *, batch_size: int = 8) -> int:
        """Encode and store the prompts that are missing; each batch is kept if the next one fails.

        Args:
            pipeline: FluxPipeline; its text encoders may be None if no prompt is missing.
            prompts: in any order, repeated or not.
            batch_size: prompts encoded together.

        Returns:
            How many were encoded.

        Raises:
            ValueError: prompts are missing and the pipeline has no text encoders, or it does not
                say where it was loaded from.
        """
        if self._model is None:
            self._model = pipeline.config.get("_name_or_path")
        if self._model is None:
            raise ValueError(
                "the pipeline does not say where it was loaded from, so its embeddings cannot be "
                "told from those of other models; pass TextCache(folder, model=...)"
            )
        missing = self.missing(prompts)
        if not missing:
            return 0
        if pipeline.text_encoder is None or pipeline.text_encoder_2 is None:
            raise ValueError(
                f"{len(missing)} prompts are not in {self.folder} and the pipeline has no text "
                f"encoders, the first is {missing[0]!r}; run cache_embeddings.py"
            )
        place = self._find_place()
        if not (place / _MODEL_NAME).is_file():
            write_json(place / _MODEL_NAME, {"model": Path(self._model).name})
        with tqdm(total=len(missing), desc="prompts", leave=False) as bar, torch.inference_mode():
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                embeds, pooled, _ = pipeline.encode_prompt(
                    batch, None, max_sequence_length=self.max_length
                )
                for prompt, one, pool in zip(batch, embeds, pooled, strict=True):
                    self._store(place / self._file_name(prompt), prompt, one, pool)
                bar.update(len(batch))
        return len(missing)

    def get(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Embeddings of a prompt, on the CPU.

        Returns:
            prompt_embeds (max_length, D) and pooled_prompt_embeds (P,), in the stored dtype.

        Raises:
            ValueError: the prompt is not in the cache, or its file is damaged.
        """
        path = self._find_place() / self._file_name(prompt)
        if not path.is_file():
            raise ValueError(
                f"prompt {prompt!r} is not in {self.folder} with {self.max_length} tokens for this "
                "model; run cache_embeddings.py"
            )
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("prompt_embeds"), file.get_tensor("pooled_prompt_embeds")
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it and run cache_embeddings.py"
            ) from error

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Prompts that are not stored, each once, in order."""
        place = self._find_place()
        return [
            prompt
            for prompt in dict.fromkeys(prompts)
            if not (place / self._file_name(prompt)).is_file()
        ]

    def count(self) -> tuple[int, int]:
        """Stored prompts of the model and their bytes on disk."""
        sizes = [path.stat().st_size for path in self._find_place().glob("*.safetensors")]
        return len(sizes), sum(sizes)

    def _file_name(self, prompt: str) -> str:
        key = json.dumps([prompt, self.max_length])
        return hashlib.sha256(key.encode()).hexdigest()[:32] + ".safetensors"

    def _store(self, path: Path, prompt: str, embeds: Tensor, pooled: Tensor) -> None:
        tensors = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        tensors = {name: t.to("cpu", self.dtype).contiguous() for name, t in tensors.items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{name} of {prompt!r} are not finite in {self.dtype}; use bfloat16 or float32"
                )
        metadata = {"prompt": prompt, "max_length": str(self.max_length)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)

    def _find_place(self) -> Path:
        """Folder of the model's embeddings."""
        if self._place is not None:
            return self._place
        identity = None if self._model is None else fingerprint(self._model)
        if identity is not None:
            self._place = self.folder / identity
            return self._place
        places = [path.parent for path in self.folder.glob(f"*/{_MODEL_NAME}")]
        if len(places) != 1:
            raise ValueError(
                f"the cache {self.folder} holds embeddings of {len(places)} models and the text "
                f"encoders of {self._model or 'the model'} are not on this disk to tell which; "
                "pass the model's folder, or run cache_embeddings.py"
            )
        self._place = places[0]
        return self._place


def fingerprint(model: str | Path) -> str | None:
    """Identity of the text encoders and tokenizers of a pipeline, from their files.

    Samples of the weights are enough to tell checkpoints apart and take milliseconds; dtype,
    device and quantisation at load time play no part, and the encoders need not be loaded.

    Args:
        model: pipeline folder, or a hub id that was downloaded before.

    Returns:
        16 hex digits; None if the files are not on this disk.
    """
    folder = _find_folder(str(model))
    if folder is None:
        return None
    files = sorted(path for part in TEXT_PARTS for path in (folder / part).rglob("*"))
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for start in _sample_starts(size):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _sample_starts(size: int) -> Sequence[int]:
    if size <= _SAMPLES * _SAMPLE_BYTES:
        return range(0, size, _SAMPLE_BYTES)  # all of it
    return [k * (size - _SAMPLE_BYTES) // (_SAMPLES - 1) for k in range(_SAMPLES)]


def _find_folder(model: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None
