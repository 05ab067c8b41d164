"""The network: six faces in, six faces out, by one evaluation of a latent UNet at the last step.

No files, no prints; loading lives in `checkpoint.py`, user units in `pipeline.py`.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pager.depth import MAX_DEPTH_M, MIN_DEPTH_M, DepthRange
from pager.geometry import NormalsFrame
from pager.layers import cubify, erp_coordinates

Modality = Literal["depth", "normals"]
PositionalEncoding = Literal["RoPE", "uv", "none"]
RGB_LATENT_CHANNELS = 4
UV_CHANNELS = 2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model:` section of a checkpoint's ``config.yaml``.

    `min_depth`, `max_depth` (metres), `face_size` (pixels), `normals_frame` and `format_version`
    are ours; absent keys mean the constants of the released checkpoints.
    """

    modality: Modality = "depth"
    pretrained_path: str = "GonzaloMG/marigold-e2e-ft-depth"
    checkpoint_path: str | None = None
    unet_positional_encoding: PositionalEncoding = "RoPE"
    metric_depth: bool = False
    log_scale: bool = True
    min_depth: float = MIN_DEPTH_M
    max_depth: float = MAX_DEPTH_M
    face_size: int = 768
    normals_frame: NormalsFrame = "pager"
    format_version: int = 1

    def __post_init__(self) -> None:
        choices = {"modality": Modality, "unet_positional_encoding": PositionalEncoding,
                   "normals_frame": NormalsFrame}  # fmt: skip
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(kind))}"
                )
        _ = self.depth_range  # checks its own limits
        if self.face_size < 1:
            raise ValueError(
                f"face_size is {self.face_size}; use the number of pixels of a face side"
            )

    @property
    def depth_range(self) -> DepthRange:
        """Map between metres and network values."""
        return DepthRange(min_m=self.min_depth, max_m=self.max_depth, log_scale=self.log_scale)

    @property
    def in_channels(self) -> int:
        """UNet input channels: image latent, zero latent and, with "uv", two coordinate maps."""
        uv = UV_CHANNELS if self.unet_positional_encoding == "uv" else 0
        return 2 * RGB_LATENT_CHANNELS + uv


class PagerModel(nn.Module):
    """Frozen VAE, single-step UNet and the constant text embedding of the empty prompt."""

    unet: Any  # UNet2DConditionModel; what diffusers' calls return is annotated too loosely
    vae: Any  # AutoencoderKL
    empty_prompt: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        empty_prompt: Tensor,
        config: ModelConfig,
        *,
        last_alpha_bar: float = 0.0,
        last_timestep: int = 999,
        rope: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """Adapt `unet` and `vae` in place (see `cubify`).

        Args:
            unet: stock class, `config.in_channels` inputs.
            vae: stock class.
            empty_prompt: (1, tokens, width).
            config: the checkpoint's options.
            last_alpha_bar: cumulative alpha of the last timestep, 0 with zero terminal SNR.
            last_timestep: the one timestep the network is run at.
            rope: "auto" follows `config`; "on"/"off" for diagnosing a checkpoint.
        """
        super().__init__()
        if unet.config["in_channels"] != config.in_channels:
            raise ValueError(
                f"the UNet takes {unet.config['in_channels']} channels, but "
                f"unet_positional_encoding={config.unet_positional_encoding!r} needs "
                f"{config.in_channels}; this checkpoint belongs to another configuration"
            )
        use_rope = config.unet_positional_encoding == "RoPE" if rope == "auto" else rope == "on"
        cubify(unet, use_rope=use_rope)
        cubify(vae)
        vae.requires_grad_(False)
        self.unet, self.vae, self.config = unet, vae, config
        self.last_timestep, self.last_alpha_bar = last_timestep, last_alpha_bar
        self.register_buffer("empty_prompt", empty_prompt, persistent=False)

    def encode(self, faces: Tensor) -> Tensor:
        """Images (b, 6, 3, S, S) in [-1, 1] to scaled latents (6b, 4, h, w); no gradient."""
        with torch.no_grad():
            mean = self.vae.encode(faces.flatten(0, 1)).latent_dist.mean
        return mean * self.vae.config["scaling_factor"]

    def denoise(self, rgb_latents: Tensor) -> Tensor:
        """One v-prediction step from the all-zero latent: (6b, 4, h, w) to (6b, 4, h, w)."""
        inputs = [rgb_latents, torch.zeros_like(rgb_latents)]
        if self.config.unet_positional_encoding == "uv":
            uv = erp_coordinates(rgb_latents.shape[-1], rgb_latents.device).to(rgb_latents.dtype)
            inputs.append(uv.repeat(len(rgb_latents) // 6, 1, 1, 1))
        text = self.empty_prompt.to(rgb_latents.dtype).expand(len(rgb_latents), -1, -1)
        velocity = self.unet(torch.cat(inputs, 1), self.last_timestep, text).sample
        return -((1 - self.last_alpha_bar) ** 0.5) * velocity

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (6b, 4, h, w) to raw images (b, 6, 3, S, S)."""
        images = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample
        return images.unflatten(0, (-1, 6))

    def forward(self, faces: Tensor) -> Tensor:
        """Predict from images (b, 6, 3, S, S) in [-1, 1].

        Returns:
            Normalised depth (b, 6, 1, S, S) or raw normals (b, 6, 3, S, S), see `ModelConfig`.
        """
        return self.read_out(self.decode(self.denoise(self.encode(faces))))

    def read_out(self, decoded: Tensor) -> Tensor:
        """Decoded images (b, 6, 3, S, S) to the values of `forward`: depth is the channel mean."""
        return decoded.mean(2, keepdim=True) if self.config.modality == "depth" else decoded


def keep_float_output(model: PagerModel) -> PagerModel:
    """Run the decoder's last norm and convolution in float32, whatever the rest runs in.

    The result is a log depth in [-1, 1]: rounded to bfloat16 its steps are up to 2 % of the depth.
    """
    decoder = model.vae.decoder
    if decoder.conv_out.weight.dtype != torch.float32:
        for module in (decoder.conv_norm_out, decoder.conv_out):
            module.float()
        decoder.conv_norm_out.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def extend_conv_in(unet: UNet2DConditionModel, in_channels: int) -> None:
    """Grow `conv_in` to `in_channels` in place; the new input weights are zero."""
    old: Any = unet.conv_in
    if old.in_channels == in_channels:
        return
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
    new.bias = old.bias
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=in_channels)
