"""Publish a checkpoint: the hub layout, a filled model card, the upload.

What is written loads as is, here and from the hub. A base model that has no hub id (a local folder)
is stored in the checkpoint, without its UNet: ``base/`` with scheduler, VAE and empty prompt.
"""

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from safetensors.torch import save_file
from torch import nn

from pager.checkpoint import (
    CONFIG_NAME,
    EMPTY_PROMPT,
    UNET_WEIGHTS,
    read_model_config,
    save_checkpoint,
    write_network_config,
)
from pager.depth import FAR_FRACTION
from pager.model import ModelConfig, PagerModel
from shared_pano_utils.imageio import atomic_path

if TYPE_CHECKING:
    from pager.pipeline import PagerPipeline

CARD_NAME = "README.md"
BASE_NAME = "base"
LAYOUT = (CARD_NAME, CONFIG_NAME, "unet/config.json", f"unet/{UNET_WEIGHTS}")
BASE_LAYOUT = (
    f"{BASE_NAME}/scheduler/scheduler_config.json",
    f"{BASE_NAME}/vae/config.json",
    f"{BASE_NAME}/vae/{UNET_WEIGHTS}",
    f"{BASE_NAME}/{EMPTY_PROMPT}",
)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

SD2_NAMES = ("stable-diffusion-2", "marigold")
SD2_SHAPE = ([320, 640, 1280, 1280], 1024)  # channels and text width of its UNet
SD2_LICENSE, UNSTATED = "openrail++", "unknown"
TAGS = ("pager", "panorama", "360-degree", "equirectangular", "diffusion")

Metrics = Mapping[str, Mapping[str, float]]
Facts = Mapping[str, str | float]


# ---- saving -------------------------------------------------------------------------------------


def save_pretrained(
    source: "PagerPipeline | PagerModel",
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metrics: Metrics | None = None,
    training: Facts | None = None,
    license_id: str | None = None,
    repo_id: str | None = None,
) -> None:
    """Write a checkpoint that anyone can load, with its model card.

    Args:
        source: what to store; of a pipeline in bfloat16, the rounded weights.
        folder: created if needed.
        dtype: of the stored weights (None keeps theirs).
        metrics: results for the card: row (a data set) -> column (a metric) -> value.
        training: facts for the card, for example ``{"steps": 12000, "data": "PanoInfinigen"}``.
        license_id: the hub's name of the weights' licence; None is Open RAIL++-M for derivatives of
            Stable Diffusion 2, which they inherit, and "unknown" for others.
        repo_id: what the card's commands load; None for the name of `folder`.
    """
    model = source if isinstance(source, PagerModel) else source.model
    folder = Path(folder)
    config = published_config(model.config)
    save_checkpoint(folder, model.unet, config, dtype=dtype)
    if config.pretrained_path == BASE_NAME:
        _save_base(model, folder / BASE_NAME, dtype)
    card = model_card(
        model,
        repo_id or folder.resolve().name,
        dtype=dtype,
        metrics=metrics,
        training=training,
        license_id=license_id,
    )
    with atomic_path(folder / CARD_NAME) as path:
        path.write_text(str(card), encoding="utf-8")


def published_config(config: ModelConfig) -> ModelConfig:
    """`config` without paths of this machine: a local base model becomes the stored one."""
    start = config.checkpoint_path
    return dataclasses.replace(
        config,
        pretrained_path=config.pretrained_path if is_hub_id(config.pretrained_path) else BASE_NAME,
        checkpoint_path=start if start is not None and is_hub_id(start) else None,
    )


def is_hub_id(name: str) -> bool:
    """Whether `name` is ``owner/name`` and no folder here."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _save_base(model: PagerModel, folder: Path, dtype: torch.dtype | None) -> None:
    state = {
        key: value.detach().to("cpu", dtype or value.dtype).contiguous()
        for key, value in model.vae.state_dict().items()
    }
    with atomic_path(folder / "vae" / UNET_WEIGHTS) as path:
        save_file(state, path, metadata={"format": "pt"})
    write_network_config(model.vae, folder / "vae" / "config.json")
    with atomic_path(folder / EMPTY_PROMPT) as path:
        save_file({"embedding": model.empty_prompt.detach().cpu().contiguous()}, path)
    # The network is run at the last step only, where every schedule with zero terminal SNR agrees.
    scheduler = DDPMScheduler(
        num_train_timesteps=model.last_timestep + 1,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )
    with atomic_path(folder / "scheduler" / "scheduler_config.json") as path:
        scheduler.to_json_file(path)


# ---- model card ---------------------------------------------------------------------------------


def model_card(
    model: PagerModel,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    metrics: Metrics | None = None,
    training: Facts | None = None,
    license_id: str | None = None,
) -> ModelCard:
    """Describe `model`, loadable as `name`; arguments as in `save_pretrained`."""
    config = published_config(model.config)
    base = None if config.pretrained_path == BASE_NAME else config.pretrained_path
    inherits = is_sd2_derivative(model)
    task = "depth-estimation" if config.modality == "depth" else "image-to-image"
    feature = "monocular-depth-estimation" if config.modality == "depth" else "surface-normals"
    data = ModelCardData(
        license=license_id or (SD2_LICENSE if inherits else UNSTATED),
        library_name="pager",
        pipeline_tag=task,
        tags=[*TAGS, feature],
        base_model=base,
    )
    sections = [
        _introduction(config, name),
        _architecture(model, base, dtype),
        _conventions(config),
        _usage(config, name),
        _results(metrics) if metrics else "",
        _table("Training", training) if training else "",
        _license(inherits, data.license),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def is_sd2_derivative(model: PagerModel) -> bool:
    """Whether the base model descends from Stable Diffusion 2, by its name or its UNet's shape."""
    unet = model.unet.config
    shape = (list(unet["block_out_channels"]), unet["cross_attention_dim"])
    name = model.config.pretrained_path.lower()
    return shape == SD2_SHAPE or any(ancestor in name for ancestor in SD2_NAMES)


def _introduction(config: ModelConfig, name: str) -> str:
    what = _prediction(config)
    return (
        f"# {name}\n\n{what[0].upper()}{what[1:]} of a whole 360° "
        "panorama (equirectangular, width = 2 x height), without seams, by one evaluation of a "
        "latent diffusion UNet over the six faces of a cube: a checkpoint of PaGeR."
    )


def _prediction(config: ModelConfig) -> str:
    if config.modality == "normals":
        return "surface normals"
    return "metric depth" if config.metric_depth else "relative depth (up to one factor)"


def _architecture(model: PagerModel, base: str | None, dtype: torch.dtype | None) -> str:
    config, unet = model.config, model.unet.config
    channels = ", ".join(map(str, unet["block_out_channels"]))
    stored = str(dtype or model.unet.dtype).removeprefix("torch.")
    facts = {"predicts": _prediction(config)}
    if config.modality == "depth":
        scale = "logarithmic" if config.log_scale else "linear"
        facts["depth range"] = f"{config.min_depth:g} to {config.max_depth:g} m, {scale}"
    facts |= {
        "cube faces": f"{config.face_size} x {config.face_size} pixels",
        "positional encoding": config.unet_positional_encoding,
        "UNet": f"`UNet2DConditionModel`, {unet['in_channels']} inputs, channels {channels}",
        "parameters": f"{_millions(model.unet)} UNet (stored as {stored}), "
        f"{_millions(model.vae)} VAE (frozen)",
        "VAE, scheduler, prompt": f"[{base}](https://huggingface.co/{base})"
        if base
        else f"`{BASE_NAME}/` in this repository",
    }
    return _table("Model", facts)


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M"


def _conventions(config: ModelConfig) -> str:
    if config.modality == "depth":
        far = FAR_FRACTION * config.max_depth
        text = (
            "Depth is the Euclidean distance from the camera along the ray of each pixel (radial), "
            f"not the z of a pinhole view. Values from {far:g} m are the end of the range: sky, or "
            "nothing seen."
        )
        if not config.metric_depth:
            text += " The scale is free: multiply by one factor per panorama to get metres."
    else:
        text = (
            "Normals are unit vectors that face the camera, x forward (centre of the panorama), "
            "y up, z left."
        )
        if config.normals_frame == "structured3d":
            text += " The network's raw output is x right, y up, z backward; the pipeline turns it."
    return f"## Conventions\n\n{text}"


def _usage(config: ModelConfig, name: str) -> str:
    unit = "metres" if config.metric_depth else "up to one factor"
    result = (
        f"depth = prediction.depth  # (1, H, W) float32, {unit}, along the ray"
        if config.modality == "depth"
        else "normals = prediction.normals  # (3, H, W) float32, unit, forward/up/left"
    )
    return f"""## Use

From the `pager` folder of its repository:

```
python inference.py --checkpoint_path {name} --input photo.jpg --results_path out --html
```

```python
from pager.pipeline import PagerPipeline
from shared_pano_utils.imageio import read_erp

pipeline = PagerPipeline.from_pretrained("{name}")
prediction = pipeline(read_erp("photo.jpg"))
{result}
```"""


def _results(metrics: Metrics) -> str:
    columns = list(dict.fromkeys(column for row in metrics.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in metrics.items():
        cells = (f"{row[column]:.4g}" if column in row else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "## Results\n\n" + "\n".join(lines)


def _table(title: str, facts: Facts) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _license(inherits: bool, license_id: str | None) -> str:
    text = f"Weights: {license_id}."
    if license_id == UNSTATED:
        text = "The author of these weights has not stated a licence."
    if inherits:
        text += (
            " The base model descends from Stable Diffusion 2, whose licence, CreativeML Open "
            "RAIL++-M, is inherited with the use restrictions of its attachment A."
        )
    return f"## Licence\n\n{text}"


# ---- upload -------------------------------------------------------------------------------------


def push_to_hub(
    source: "str | Path | PagerPipeline | PagerModel",
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a checkpoint, creating the repository and the branch where needed.

    Args:
        source: a folder of `save_pretrained`, or what to write by it.
        repo_id: ``owner/name``.
        private: for a new repository; None is the owner's default.
        revision: branch; None is the main one.
        commit_message: None names the modality.
        token: None is the stored login.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: the folder lacks a file of the layout.
        ValueError: it names a base model that others do not have, or the hub refuses `repo_id`.
        ConnectionError: no network, no login or no permission.
    """
    if not isinstance(source, str | Path):
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(source, folder, repo_id=repo_id)
            return push_to_hub(
                folder, repo_id, private=private, revision=revision,
                commit_message=commit_message, token=token,
            )  # fmt: skip
    files = layout_files(Path(source))
    modality = read_model_config(Path(source))[0].modality
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=source,
            revision=revision,
            commit_message=commit_message or f"Upload PaGeR checkpoint ({modality})",
            allow_patterns=files,
        )
    except HFValidationError as error:
        raise ValueError(f"repo_id is {repo_id!r}; use owner/name ({_line(error)})") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ConnectionError(
            f"{repo_id} could not be uploaded ({_line(error)}); check the network and the login "
            "(hf auth login, or token) and run it again"
        ) from error
    return str(url)


def layout_files(folder: Path) -> list[str]:
    """Files of a published checkpoint, relative to `folder`; what else lies there is left out.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the base model is a local folder outside of it.
    """
    advice = "write the folder with save_pretrained"
    missing = [name for name in LAYOUT if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; {advice}")
    base = read_model_config(folder)[0].pretrained_path
    if is_hub_id(base):
        return list(LAYOUT)
    if base != BASE_NAME:
        raise ValueError(
            f"{folder / CONFIG_NAME} names the base model {base}, which exists only on this "
            f"machine; {advice}, which includes it"
        )
    missing = [name for name in BASE_LAYOUT if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; {advice}")
    return [*LAYOUT, *BASE_LAYOUT]


def _line(error: Exception) -> str:
    """First line of a message, or the kind of error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
