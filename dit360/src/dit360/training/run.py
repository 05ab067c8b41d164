"""One training run from options to checkpoints, and its dry twin."""

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from lightning.pytorch.callbacks import Callback

from dit360.data.check import check_rows
from dit360.training.build import (
    add_adapter,
    build_module,
    find_devices,
    prepare_latents,
    prepare_texts,
)
from dit360.training.checkpoint import (
    Average,
    StopAtStep,
    WeightWriter,
    checkpoint_callbacks,
    find_checkpoint,
)
from dit360.training.datamodule import TrainData, read_rows
from dit360.training.extract import Inert, read_checkpoint
from dit360.training.options import TrainOptions
from dit360.training.schedule import count_photos
from dit360.training.strategy import choose_strategy, frozen_dtype, trainer_arguments
from dit360.training.validation import Validation, read_prompts
from shared_pano_utils.runinfo import write_run_info

logger = logging.getLogger(__name__)

PACKAGES = ("dit360", "torch", "diffusers", "transformers", "peft", "lightning", "deepspeed")
SAME_ON_RESUME = (
    "trainable", "rank", "lora_alpha", "padding_n", "pad_ids", "vae_wrap", "resolution", "seed",
    "train_batch_size", "accumulate_grad_batches",
)  # fmt: skip
# Hints of Lightning on what is meant to be so.
_HINTS = (
    ".*does not have many workers.*",  # --dataloader_num_workers says how many
    ".*smaller than the logging interval.*",
    ".*exists and is not empty.*",  # the folder of checkpoints
    ".*dirpath has changed.*",  # a resumed run has a folder of its own
    ".*TreeSpec.*",
)


class RunInfo(Callback):
    """Writes run.json beside the log before the first step."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it on the first rank."""
        del pl_module
        if trainer.is_global_zero:
            assert trainer.logger is not None
            folder = Path(str(trainer.logger.log_dir))
            write_run_info(folder, dataclasses.asdict(self.options), PACKAGES)


def train(options: TrainOptions) -> Path:
    """Train as the options say.

    Returns:
        The folder of the run, ``<save_dir>/lightning_logs/version_<N>``.

    Raises:
        FileNotFoundError, ValueError: something in the options does not fit; before any training.
        FloatingPointError: the loss is not a number any more.
    """
    resume = _find_resumable(options)
    strategy = choose_strategy(options)
    find_devices(options)  # a mistake shows before models are loaded
    prompts = read_prompts(options.validation_prompts)
    panoramas, photos = read_rows(options)
    L.seed_everything(options.seed, verbose=False)  # new adapters; the rest has own streams
    texts = prepare_texts(options, [row.caption for row in (*panoramas, *photos)] + prompts)
    module = build_module(options, strategy)
    data = TrainData(options, panoramas, photos, texts)
    if options.latent_cache is not None:
        prepare_latents(options, module.vae, data.examples)
    average = Average(options.ema_decay) if options.ema_decay else None
    callbacks: list[Callback] = [RunInfo(options), WeightWriter(average)]
    if average is not None:
        callbacks.insert(0, average)
    if options.max_steps > 0:
        callbacks.append(StopAtStep(options.max_steps))
    if prompts:
        callbacks.append(Validation(options, prompts, texts, average))
    with warnings.catch_warnings():
        for hint in _HINTS:
            warnings.filterwarnings("ignore", hint)
        trainer = L.Trainer(
            **trainer_arguments(options, strategy, module),
            default_root_dir=options.save_dir,
            max_epochs=options.max_epochs,
            accumulate_grad_batches=options.accumulate_grad_batches,
            log_every_n_steps=options.log_every_n_steps,
            callbacks=callbacks + checkpoint_callbacks(options),
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_model_summary=options.verbose,
        )
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    assert trainer.logger is not None
    return Path(str(trainer.logger.log_dir))


def dry_run(options: TrainOptions) -> dict[str, Any]:
    """Read all images and the shapes of the model, train nothing.

    Returns:
        Counts of samples and parameters, bytes of weights, gradients and moments, the options.

    Raises:
        FileNotFoundError, ValueError: something in the options or the data does not fit.
    """
    _find_resumable(options)
    strategy = choose_strategy(options)
    read_prompts(options.validation_prompts)
    panoramas, photos = read_rows(options)
    check_rows([*panoramas, *photos], workers=max(1, options.dataloader_num_workers))
    config: Any = FluxTransformer2DModel.load_config(
        options.pretrained_model_name_or_path, subfolder="transformer", revision=options.revision
    )
    with torch.device("meta"):
        transformer: Any = FluxTransformer2DModel.from_config(config)
        add_adapter(transformer, options)
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in transformer.parameters()) - trained
    frozen_bytes = frozen * frozen_dtype(options, strategy).itemsize
    return {
        "panoramas": len(panoramas),
        "photos_by_epoch": [
            count_photos(options, len(photos), epoch) for epoch in range(min(options.max_epochs, 8))
        ],
        "strategy": strategy,
        "frozen_parameters": frozen,
        "trained_parameters": trained,
        "samples_per_update_and_device": options.train_batch_size * options.accumulate_grad_batches,
        "weights_gradients_moments_gib": round((frozen_bytes + 16 * trained) / 2**30, 2),
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(options).items()
        },
    }


def _find_resumable(options: TrainOptions) -> str | None:
    """The checkpoint to go on from, which was not silently another training; None for a new run."""
    path = find_checkpoint(options)
    if path is None:
        return None
    before = read_checkpoint(path).get("hyper_parameters", {}).get("args")
    if isinstance(before, Inert) and Path(path).is_dir():
        before = before.content  # DeepSpeed loads the Namespace of the original
    if not isinstance(before, dict):
        raise ValueError(
            f"{path} holds no options of a run that can be resumed; start from its weights with "
            "--load_ckpt"
        )
    for name in SAME_ON_RESUME:
        value = getattr(options, name)
        if before.get(name, value) != value:
            raise ValueError(
                f"the checkpoint was made with --{name} {before[name]}, not {value}; resume with "
                "the options of the first run, or start anew with --load_ckpt"
            )
    return path
