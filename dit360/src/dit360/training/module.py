"""The LightningModule: one training step, its random numbers, optimizer and weights on disk."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from dit360 import flow, losses, wrap
from dit360.training.options import TrainOptions
from dit360.training.schedule import SAMPLE, STEP, aux_is_on, lr_scheduler, stream, stream_seed
from dit360.vae import encode, pack, unpack


class Draws(NamedTuple):
    """Random numbers of a batch."""

    noise: Tensor  # (B, 16, h, w) on the device
    sigma: Tensor  # (B,) on the device
    angles_deg: Tensor  # (B,) on the CPU


class DiT360Training(L.LightningModule):
    """Trains `transformer`; the names of the attributes are those of the original's checkpoints.

    Args:
        options: of the run.
        transformer: with an adapter, or all of it trainable; see `dit360.training.build`.
        vae: frozen, float32; without its encoder if the examples are latents.
        lora: configuration of the adapter as plain values, None without one.
    """

    def __init__(
        self, options: TrainOptions, transformer: Any, vae: Any, lora: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.options = options
        self.flux_transformer = transformer
        self.vae = vae
        self.trained = [name for name, p in self.named_parameters() if p.requires_grad]
        self.strict_loading = False  # frozen weights are not in the checkpoints
        plain = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(options).items()
        }
        self.save_hyperparameters({"args": plain, "lora_config": lora})

    # ---- a step ---------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch, see `dit360.training.datamodule.Examples` (spec 5.3, 5.4)."""
        # Dropout has no generator of its own. Ranks get different masks, and a resumed run the same.
        torch.manual_seed(
            stream_seed(self.options.seed, STEP, self.current_epoch, batch_idx, self.global_rank)
        )
        streams = [
            stream(self.options.seed, SAMPLE, self.current_epoch, index)
            for index in batch["index"].tolist()
        ]
        if "moments" in batch:
            clean = self.sample(batch["moments"], streams)
        else:
            clean = self.encode(batch["pixel_values"], streams)
        draws = self.draw(clean, streams)
        noisy = flow.interpolate(clean, draws.noise, draws.sigma)
        velocity = self.predict(
            noisy, draws.sigma, batch["prompt_embeds"], batch["pooled_prompt_embeds"]
        )
        residual = velocity - flow.target(clean, draws.noise)
        result = self.measure(residual, draws, batch["supervised"])
        loss = result.total.mean()
        self._log(result, len(clean))
        self._require_finite(loss, batch_idx)
        return loss

    @torch.no_grad()
    def encode(self, pixels: Tensor, streams: list[torch.Generator]) -> Tensor:
        """Sample the posterior of images (B, 3, H, W): (B, 16, H/8, W/8), float32 (D18)."""
        with torch.autocast(self.device.type, enabled=False):
            # The library draws each sample's noise from its own generator.
            return encode(self.vae, pixels.float(), generator=streams)  # pyright: ignore[reportArgumentType]

    def sample(self, moments: Tensor, streams: list[torch.Generator]) -> Tensor:
        """The same as `encode` from cached moments (B, 32, h, w); the VAE is not run."""
        posterior = DiagonalGaussianDistribution(moments.float())
        config = self.vae.config
        latents = posterior.sample(streams)  # pyright: ignore[reportArgumentType]
        return (latents - config.shift_factor) * config.scaling_factor

    def draw(self, clean: Tensor, streams: list[torch.Generator]) -> Draws:
        """Noise, level and yaw angle of each sample from its own stream."""
        options, (height, width) = self.options, clean.shape[-2:]
        mu = None
        if options.timestep_shift == "inference":
            mu = flow.schedule_mu(height // 2 * (width // 2 + 2 * options.padding_n))
        noise = [torch.randn(clean.shape[1:], generator=source) for source in streams]
        sigma = flow.draw_sigmas(
            streams,
            scheme=options.weighting_scheme,
            logit_mean=options.logit_mean,
            logit_std=options.logit_std,
            mode_scale=options.mode_scale,
            shift_mu=mu,
        )
        uniform = torch.tensor([torch.rand((), generator=source) for source in streams])
        angles = 360 * uniform
        if options.yaw_angles == "released":
            released = torch.tensor(losses.YAW_ANGLES_DEG)
            angles = released[(len(released) * uniform).long()]
        return Draws(torch.stack(noise).to(clean.device), sigma.to(clean.device), angles)

    def predict(self, noisy: Tensor, sigma: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        """Velocity of noisy latents (B, 16, h, w), float32; the input is wrapped by padding_n."""
        transformer, options = self.flux_transformer, self.options
        batch, _, height, width = noisy.shape
        grid, dtype = (height // 2, width // 2), transformer.dtype
        ids = FluxPipeline._prepare_latent_image_ids(batch, *grid, noisy.device, dtype)
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full_like(sigma, options.guidance_scale)
        padded = transformer(
            hidden_states=wrap.pad_tokens(pack(noisy), grid, options.padding_n).to(dtype),
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=prompt.to(dtype),
            pooled_projections=pooled.to(dtype),
            txt_ids=torch.zeros(prompt.shape[1], 3, device=noisy.device, dtype=dtype),
            img_ids=wrap.pad_ids(ids, grid, options.padding_n, options.pad_ids),
            return_dict=False,
        )[0]
        return unpack(wrap.crop_tokens(padded.float(), grid, options.padding_n), grid)

    def measure(self, residual: Tensor, draws: Draws, supervised: Tensor) -> losses.FlowLosses:
        """Losses of the samples at this epoch."""
        options = self.options
        aux = aux_is_on(options, self.current_epoch)
        return losses.flow_losses(
            residual,
            flow.loss_weights(draws.sigma, options.weighting_scheme),
            lambda_yaw=aux * options.lambda_yaw,
            lambda_cube=aux * options.lambda_cube,
            angles_deg=draws.angles_deg,
            grid=options.aux_grid,
            supervised=supervised,
            perspective_weight=options.perspective_weight,
            reduction=options.perspective_reduction,
        )

    def _log(self, result: losses.FlowLosses, batch_size: int) -> None:
        values = dict(zip(("train_loss", "loss_v", "loss_yaw", "loss_cube"), result, strict=True))
        self.log_dict(
            {name: value.detach().mean() for name, value in values.items()},
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            batch_size=batch_size,
        )

    def _require_finite(self, loss: Tensor, batch_idx: int) -> None:
        # In float16 a rare overflow is normal: the loss scaler leaves such a step out.
        if not self.options.precision.startswith("16") and not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx}; look "
                "at these samples, or lower --learning_rate"
            )

    # ---- optimizer and weights ------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained, and the schedule of its rate."""
        options = self.options
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_epsilon,
            weight_decay=options.adam_weight_decay,
        )
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        schedule = lr_scheduler(options, optimizer, data.updates())
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        """Put the VAE back to float32 after a strategy has halved the module."""
        self.vae.to(self.device)
        if self.vae.dtype != torch.float32:
            self.vae.float()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen weights unless asked for (D15)."""
        if not self.options.save_full and checkpoint.get("state_dict"):
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in self.trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint in which trained weights are missing."""
        state = checkpoint.get("state_dict")  # DeepSpeed loads the weights by itself
        missing = [name for name in self.trained if name not in state] if state else []
        if missing:
            raise ValueError(
                f"the checkpoint lacks {len(missing)} trained tensors, the first is {missing[0]}; "
                "resume with the model of the first run"
            )
