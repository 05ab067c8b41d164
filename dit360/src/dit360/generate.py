"""From prompts to panorama files: the engine behind `inference.py`.

A file carries what made it (prompt, seed, settings), so that a second run can tell finished work
from a file that was made otherwise, and the photo-sphere metadata that viewers look for.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dit360.captions import TRIGGER
from dit360.memory import choose_device
from dit360.pipeline import DiT360Pipeline
from dit360.textcache import _SAMPLE_BYTES, _sample_starts
from shared_pano_utils.imageio import atomic_path
from shared_pano_utils.metadata import gpano_save_options
from shared_pano_utils.metrics import seam_error

if TYPE_CHECKING:
    from dit360.loading import LoadOptions

SUFFIXES = (".png", ".jpg", ".jpeg")
# Options that change a picture by rounding at most, or may not leave this machine.
INCIDENTAL = {"attention", "compile", "precompute_modulation", "text_cache", "token"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every panorama of a run is sampled; the defaults are those of the original.

    Attributes:
        height: pixels, a multiple of 16; below too.
        width: 2 * height for a panorama.
        num_inference_steps: denoising steps.
        guidance_scale: value of the distilled guidance embedding; the paper used 3.0.
        negative_prompt: what to keep away from; without effect where `true_cfg_scale` is 1.
        true_cfg_scale: classifier-free guidance against `negative_prompt`; above 1 costs double.
        max_sequence_length: T5 tokens of a prompt, up to 512.
    """

    height: int = 1024
    width: int = 2048
    num_inference_steps: int = 28
    guidance_scale: float = 2.8
    negative_prompt: str = ""
    true_cfg_scale: float = 1.0
    max_sequence_length: int = 512

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < 16 or size % 16:
                raise ValueError(f"{name} is {size}; use a multiple of 16, such as {_near(size)}")
        for name in ("num_inference_steps", "max_sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.max_sequence_length > 512:
            raise ValueError(f"max_sequence_length is {self.max_sequence_length}; use 512 or less")
        if self.true_cfg_scale > 1 and not self.negative_prompt:
            raise ValueError(
                f"true_cfg_scale is {self.true_cfg_scale}, which needs a negative_prompt; pass one"
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One panorama to make.

    Attributes:
        prompt: as the text encoders read it, trigger included.
        seed: of the start noise.
        name: file below the folder of results.
        made_with: what else the picture depends on (model, LoRA ...), stored in the file.
    """

    prompt: str
    seed: int
    name: str
    made_with: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A panorama that has been written.

    Attributes:
        path: of the file.
        seam_ratio: step across +-180 degrees over the steps beside it; 1 means no seam.
        seconds: that it took.
    """

    path: Path
    seam_ratio: float
    seconds: float


def with_trigger(prompt: str) -> str:
    """Put the words in front that the LoRA was trained with, unless they are there."""
    return prompt if prompt.startswith(TRIGGER) else f"{TRIGGER} {prompt}"


def generate(
    pipeline: DiT360Pipeline, jobs: Sequence[Job], settings: Settings, out: Path
) -> Iterator[Result]:
    """Make panoramas and write each as soon as it is there.

    Args:
        pipeline: ready to run.
        jobs: whose files are written, or replaced.
        settings: of all of them.
        out: folder of the files, made if missing.

    Raises:
        FloatingPointError: a panorama is not finite.
    """
    for job in jobs:
        began = time.monotonic()
        erp = generate_image(pipeline, job.prompt, job.seed, settings)
        write_panorama(out / job.name, erp, describe(job, settings))
        yield Result(
            path=out / job.name,
            seam_ratio=float(seam_error(erp)["wrap_ratio"]),
            seconds=time.monotonic() - began,
        )


def generate_image(
    pipeline: DiT360Pipeline,
    prompt: str,
    seed: int,
    settings: Settings,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Make one panorama.

    The noise is drawn on the device that computes, as in the original: a seed gives different
    panoramas on GPU and CPU.

    Args:
        pipeline: ready to run.
        prompt: trigger included.
        seed: of the noise.
        settings: size and sampling.
        on_step: called with the number of each finished step, from 0.

    Returns:
        (height, width, 3) uint8.

    Raises:
        FloatingPointError: the panorama is not finite.
    """

    def end_step(_pipeline: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step)
        return tensors

    image = pipeline(
        prompt,
        negative_prompt=settings.negative_prompt or None,
        true_cfg_scale=settings.true_cfg_scale,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=settings.max_sequence_length,
        generator=torch.Generator(pipeline._execution_device).manual_seed(seed),
        callback_on_step_end=end_step,
        output_type="np",
        return_dict=False,
    )[0][0]
    if not np.isfinite(image).all():
        raise FloatingPointError(
            f"the panorama of seed {seed} is not finite in {pipeline.transformer.dtype} (VAE: "
            f"{pipeline.vae.dtype}); use --dtype bf16 or fp32"
        )
    return (image * 255).round().astype(np.uint8)


# ---- files --------------------------------------------------------------------------------------


def describe_model(options: "LoadOptions") -> dict[str, Any]:
    """What a picture depends on besides its own settings: weights, and how they are run.

    Local weights are ``<name> (<hash>)`` without their folder, as pictures are given away. The kind
    of device counts, since noise is drawn there; values of --memory with equal numbers are one.

    Raises:
        ValueError: the device is not there.
    """
    values = dataclasses.asdict(options)
    for name, hash_weights in (("model", _hash_model), ("lora", _hash_lora)):
        if values[name] is not None and (path := Path(values[name]).expanduser()).exists():
            values[name] = f"{path.absolute().name} ({hash_weights(path)})"
    values["device"] = choose_device(options.device).type
    if options.memory == "balanced":
        values["memory"] = "full"
    return {name: value for name, value in values.items() if name not in INCIDENTAL}


def _hash_model(folder: Path) -> str:
    """16 hex digits of samples from the weights of all parts; all of their 34 GB take minutes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        with path.open("rb") as file:
            for start in _sample_starts(path.stat().st_size):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _hash_lora(path: Path) -> str:
    """16 hex digits of a file or folder, and of the file beside it that may state alpha."""
    folder, weights = path.parent, [path]
    if path.is_dir():
        folder, weights = path, sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in (*weights, folder / "adapter_config.json"):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def describe(job: Job, settings: Settings) -> dict[str, Any]:
    """Everything that a panorama depends on, as its file says it."""
    return {"prompt": job.prompt, "seed": job.seed, **vars(settings), **job.made_with}


def write_panorama(path: Path, erp: np.ndarray, made_with: dict[str, Any]) -> None:
    """Write a panorama with `made_with`: PNG text chunks, or the comment of a JPEG.

    Args:
        path: .png, .jpg or .jpeg; missing folders are made and the write is atomic.
        erp: (H, W, 3) uint8; marked as a full sphere where W = 2 H.
        made_with: prompt, seed and settings; simple values.

    Raises:
        ValueError: another suffix.
    """
    kind = check_suffix(path)
    height, width = erp.shape[:2]
    is_sphere = width == 2 * height
    options = gpano_save_options(kind, height, width) if is_sphere else {}
    text = json.dumps(made_with, ensure_ascii=False)
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = options.setdefault("pnginfo", PngInfo())
        info.add_itxt("prompt", str(made_with.get("prompt", "")))
        info.add_itxt("seed", str(made_with.get("seed", "")))
        info.add_itxt("settings", text)
    else:
        options |= {"quality": 95, "subsampling": 0, "comment": text.encode()}
    with atomic_path(path) as temporary:
        Image.fromarray(erp).save(temporary, format=kind, **options)


def read_made_with(path: Path) -> dict[str, Any] | None:
    """What `write_panorama` stored in an image; None if it is not one of those."""
    try:
        with Image.open(path) as image:
            text = image.info.get("settings") or image.info.get("comment") or "null"
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_finished(path: Path, made_with: dict[str, Any]) -> bool:
    """Whether a panorama exists that was made just so.

    Raises:
        ValueError: something else has its name.
    """
    if not path.exists():
        return False
    found = read_made_with(path)
    hint = "choose another --output or pass --overwrite"
    if found is None:
        raise ValueError(f"{path} exists and does not say how it was made; {hint}")
    for key in sorted({*found, *made_with}):
        if found.get(key) != made_with.get(key):
            raise ValueError(
                f"{path} was made with {key} {found.get(key)!r}, not {made_with.get(key)!r}; {hint}"
            )
    return True


def check_suffix(path: Path) -> str:
    """Pillow's name of the format of an image file.

    Raises:
        ValueError: the format cannot hold the description.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is not a PNG or JPEG file; use one of {', '.join(SUFFIXES)}")
    return "PNG" if path.suffix.lower() == ".png" else "JPEG"


def _near(size: int) -> int:
    return max(16, round(size / 16) * 16)
