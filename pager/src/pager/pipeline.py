"""Panorama in, geometry out, in user units: the object behind every inference command."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pager.checkpoint import load_model
from pager.depth import FAR_FRACTION
from pager.geometry import structured3d_to_pager
from pager.model import Modality, PagerModel, keep_float_output
from pager.streaming import stream_faces
from pager.training.batches import erp_to_faces, rgb_to_unit
from shared_pano_utils import cubemap_to_erp
from shared_pano_utils.geometry import PY360_E2X

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Geometry of one panorama.

    `depth` (1, H, W) float32, metres along the ray (up to one factor unless `is_metric`);
    `normals` (3, H, W) float32, unit, `pager` frame (forward, up, left), facing the camera;
    `far_m` is the distance from which depth is the end of the range: sky, or nothing seen.
    """

    depth: np.ndarray | None = None
    normals: np.ndarray | None = None
    is_metric: bool = False
    far_m: float | None = None


class PagerPipeline:
    """One checkpoint, ready to predict."""

    def __init__(
        self,
        model: PagerModel,
        device: torch.device,
        dtype: torch.dtype,
        *,
        offload: bool = False,
        stream_vae: bool = False,
        channels_last: bool = False,
        compile_backend: str | None = None,
    ) -> None:
        """Place the networks.

        Args:
            model: on the CPU.
            device: where the arithmetic runs.
            dtype: of weights and maps.
            offload: keep the VAE and the UNet on the CPU while they are not needed.
            stream_vae: keep the VAE's maps in host memory, one face on the device (`streaming`);
                exact, slow, for small cards.
            channels_last: memory layout of weights and maps; for GPUs, slower on CPUs.
            compile_backend: of ``torch.compile``, for example "inductor"; None does not compile.
        """
        self.device, self.dtype, self.offload = device, dtype, offload
        self.model = keep_float_output(model.to(dtype=dtype)).eval()
        self._maps_device = torch.device("cpu") if stream_vae else device
        if stream_vae:
            stream_faces(self.model.vae, device)
        self.model.empty_prompt = self.model.empty_prompt.to(device)
        for network in (self.model.unet, self.model.vae):
            network.to("cpu" if offload else device)
            if channels_last:
                network.to(memory_format=torch.channels_last)
        if compile_backend is not None:
            # One plain pass makes the tables of `layers`, which would cut the compiled graphs.
            self(np.zeros((16, 32, 3), np.uint8))
            for network in (self.model.unet, self.model.vae.encoder, self.model.vae.decoder):
                network.compile(backend=compile_backend)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        revision: str | None = None,
        pretrained_path: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        rope: Literal["auto", "on", "off"] = "auto",
        offload: bool = False,
        stream_vae: bool = False,
        channels_last: bool = False,
        compile_backend: str | None = None,
        **overrides: Any,
    ) -> "PagerPipeline":
        """Load a checkpoint (see `checkpoint.load_model`).

        Args:
            checkpoint: hub id, folder or .safetensors file.
            revision: hub commit, tag or branch.
            pretrained_path: base model instead of the stored one.
            device: "auto" takes cuda, mps or cpu, in this order.
            precision: "auto" is bfloat16 on cuda and float32 elsewhere.
            rope: "auto" follows the checkpoint.
            offload: see `__init__`, like the next three.
            stream_vae: see `__init__`.
            channels_last: see `__init__`.
            compile_backend: see `__init__`.
            **overrides: `ModelConfig` fields to replace, for example ``max_depth=15``.
        """
        target = choose_device(device)
        dtype = choose_dtype(precision, target)
        changes = {key: value for key, value in overrides.items() if value is not None}
        model = load_model(
            checkpoint,
            revision=revision,
            pretrained_path=pretrained_path,
            rope=rope,
            overrides=changes,
        )
        return cls(
            model,
            target,
            dtype,
            offload=offload,
            stream_vae=stream_vae,
            channels_last=channels_last,
            compile_backend=compile_backend,
        )

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the hub layout with a model card; `options` as in `hub.save_pretrained`."""
        from pager import hub

        hub.save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the hub; arguments and result as in `hub.push_to_hub`."""
        from pager import hub

        return hub.push_to_hub(self, repo_id, **options)

    @property
    def modality(self) -> Modality:
        """What this checkpoint predicts."""
        return self.model.config.modality

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray, size: tuple[int, int] | None = None) -> Prediction:
        """Predict one panorama.

        Args:
            rgb: (H, W, 3) uint8.
            size: (H, W) of the result; None for that of `rgb`.
        """
        erp = rgb_to_unit(torch.from_numpy(rgb).to(self.device).movedim(-1, 0)[None])
        faces = erp_to_faces(erp, self.model.config.face_size).to(self.dtype)
        decoded = self._forward(faces)
        height, width = size or rgb.shape[:2]
        # The exact inverse of the input warp: faces include their borders, pixels are centred.
        result = cubemap_to_erp(decoded, (height, width), reg=PY360_E2X)[0]
        config = self.model.config
        if config.modality == "depth":
            depth = config.depth_range.denormalize(result)
            return Prediction(
                depth=depth.cpu().numpy(),
                is_metric=config.metric_depth,
                far_m=FAR_FRACTION * config.max_depth,
            )
        return Prediction(normals=self._to_pager_frame(result).cpu().numpy())

    def _forward(self, faces: Tensor) -> Tensor:
        """`PagerModel.forward` in stages, each network where it is needed."""
        with self._placed(self.model.vae):
            latents = self.model.encode(faces.to(self._maps_device))
        with self._placed(self.model.unet):
            latents = self.model.denoise(latents.to(self.device))
        with self._placed(self.model.vae):
            decoded = self.model.decode(latents.to(self._maps_device))
        return self.model.read_out(decoded.to(self.device))

    @contextmanager
    def _placed(self, network: nn.Module) -> Iterator[None]:
        if not self.offload:
            yield
            return
        network.to(self.device)
        try:
            yield
        finally:
            network.to("cpu")

    def _to_pager_frame(self, values: Tensor) -> Tensor:
        if self.model.config.normals_frame == "structured3d":
            values = structured3d_to_pager(values)
        return F.normalize(values, dim=-3, eps=1e-6)


def merge(predictions: list[Prediction]) -> Prediction:
    """Join the depth of one checkpoint and the normals of another."""
    merged = Prediction()
    for item in predictions:
        found = {k: v for k, v in vars(item).items() if v is not None and v is not False}
        merged = dataclasses.replace(merged, **found)
    return merged


def choose_device(name: str) -> torch.device:
    """Resolve "auto" to cuda, mps or cpu; a named device that is absent is an error."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps is not available (it needs macOS on Apple hardware); use cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} is not available (no CUDA driver found); use --device cpu")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Resolve "auto" to bfloat16 on cuda and float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        precision
    ]
