"""Panoramas from the weights of the moment, with the seam in numbers."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from lightning.pytorch.callbacks import Callback

from dit360.generate import with_trigger
from dit360.pipeline import DiT360Pipeline
from dit360.training.checkpoint import Average
from dit360.training.datamodule import Texts
from dit360.training.options import TrainOptions
from shared_pano_utils.imageio import write_image
from shared_pano_utils.metrics import seam_error

logger = logging.getLogger(__name__)

FOLDER = "validation"


def read_prompts(path: Path | None) -> list[str]:
    """Prompts of a file as inference sends them, one a line; none without a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds no prompt.
    """
    if path is None:
        return []
    if not path.is_file():
        raise FileNotFoundError(f"--validation_prompts {path} does not exist")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    prompts = [with_trigger(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--validation_prompts {path} holds no prompt; write one a line")
    return prompts


class Validation(Callback):
    """Writes ``<save_dir>/validation/epoch=<EE>_prompt=<K>.png`` and logs ``val_seam_ratio``.

    Args:
        options: of the run.
        prompts: texts, one image each, always with the same start noise.
        texts: their embeddings.
        average: the images are those of the average if there is one.
    """

    def __init__(
        self, options: TrainOptions, prompts: list[str], texts: Texts, average: Average | None
    ) -> None:
        self.options, self.prompts, self.texts, self.average = options, prompts, texts, average

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the images on the first rank, in every so many epochs."""
        if (trainer.current_epoch + 1) % self.options.validation_epochs:
            return
        ratio = self._write_images(trainer, pl_module) if trainer.is_global_zero else 0.0
        pl_module.log("val_seam_ratio", ratio, rank_zero_only=True)

    def _write_images(self, trainer: L.Trainer, module: Any) -> float:
        """Write an image for each prompt; the mean seam ratio, 1 = no seam."""
        pipeline = build_pipeline(self.options, module)
        folder = self.options.save_dir / FOLDER
        averaged = self.average.applied() if self.average else contextlib.nullcontext()
        module.flux_transformer.eval()
        ratios = []
        with averaged, trainer.precision_plugin.forward_context():
            for number, prompt in enumerate(self.prompts):
                erp = self._generate(pipeline, prompt, number)
                name = f"epoch={trainer.current_epoch:02d}_prompt={number}.png"
                write_image(folder / name, erp, gpano=True)
                ratios.append(float(seam_error(erp)["wrap_ratio"]))
        module.flux_transformer.train()
        logger.info("validation: seam ratio %.3f, images in %s", np.mean(ratios), folder)
        return float(np.mean(ratios))

    def _generate(self, pipeline: Any, prompt: str, number: int) -> np.ndarray:
        """The panorama (H, 2H, 3) uint8 of a prompt."""
        embeds, pooled = (
            value[None].to(pipeline.transformer.device, pipeline.transformer.dtype)
            for value in self.texts.get(prompt)
        )
        image = pipeline(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            height=self.options.resolution,
            num_inference_steps=self.options.validation_inference_steps,
            guidance_scale=self.options.validation_guidance,
            generator=torch.Generator().manual_seed(self.options.seed + number),
            output_type="np",
        ).images[0]
        return (image * 255).round().astype(np.uint8)


def build_pipeline(options: TrainOptions, module: Any) -> DiT360Pipeline:
    """The pipeline around the networks of a run, without text encoders."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(
        options.pretrained_model_name_or_path, subfolder="scheduler", revision=options.revision
    )
    parts: dict[str, Any] = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    )
    pipeline = DiT360Pipeline(
        scheduler=scheduler, vae=module.vae, transformer=module.flux_transformer, **parts
    )
    pipeline.padding_n, pipeline.pad_ids = options.padding_n, options.pad_ids
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
