"""What a run writes: checkpoints, the LoRA beside them, the moving average of the weights."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from dit360.lora import EXTRA_OPTIONS, save_lora
from dit360.training.datamodule import batches_done
from dit360.training.extract import MODEL_PREFIX
from dit360.training.options import TrainOptions
from shared_pano_utils.imageio import atomic_path

logger = logging.getLogger(__name__)

LAST_NAME, STEP_NAME = "last.ckpt", "step.ckpt"  # of an epoch, inside an epoch
LORA_NAME, TRANSFORMER_NAME = "lora", "transformer"  # folders beside the checkpoints
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


class _EpochCheckpoint(ModelCheckpoint):
    """Saves whole epochs only: Lightning would take one that was cut short for a whole one.

    It writes last.ckpt itself, since Lightning's `save_last` also saves at the end of a run, then
    with the number of an epoch that never ended, and only there if no other checkpoint is kept.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_whole_epoch(trainer):
            super().on_train_epoch_end(trainer, pl_module)
            trainer.save_checkpoint(checkpoint_folder(trainer) / LAST_NAME)


def is_whole_epoch(trainer: L.Trainer) -> bool:
    """Whether all batches of the epoch are done."""
    return batches_done(trainer) >= trainer.num_training_batches


class StopAtStep(Callback):
    """Ends the run after `steps` updates, in the middle of an epoch with a last.ckpt of it.

    Lightning's own limit cannot be resumed exactly.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make no further update if the checkpoint has them all."""
        del pl_module
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
            logger.warning(
                "%s has %d updates, --max_steps is %d: nothing is left to train",
                trainer.ckpt_path, trainer.global_step, self.steps,
            )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop when there are enough updates."""
        del args, kwargs
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
            if not is_whole_epoch(trainer):
                trainer.save_checkpoint(checkpoint_folder(trainer) / LAST_NAME)


def checkpoint_folder(trainer: L.Trainer) -> Path:
    """Where the checkpoints of a run lie."""
    folder = trainer.checkpoint_callback.dirpath  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    return Path(folder)


def checkpoint_callbacks(options: TrainOptions) -> list[Callback]:
    """One checkpoint per epoch under the original's name, last.ckpt, and one inside the epochs."""
    every_epoch = _EpochCheckpoint(
        filename="vsclip_{epoch:02d}_{train_loss:.2f}",
        save_top_k=options.topk,
        monitor="epoch" if options.topk > 0 else None,  # the newest are the top
        mode="max",
        save_on_train_epoch_end=True,
    )
    if options.save_every_n_steps is None:
        return [every_epoch]
    inside = ModelCheckpoint(
        filename=Path(STEP_NAME).stem,
        every_n_train_steps=options.save_every_n_steps,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return [every_epoch, inside]


def find_checkpoint(options: TrainOptions) -> str | None:
    """The checkpoint that --resume_from_checkpoint means: a path, or the newest of --save_dir.

    Raises:
        FileNotFoundError: there is none.
    """
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted != "last":
        if not Path(wanted).exists():
            raise FileNotFoundError(
                f"--resume_from_checkpoint {wanted} does not exist; pass a .ckpt, or last"
            )
        return wanted
    folders = options.save_dir.glob("lightning_logs/version_*/checkpoints")
    found = [
        path
        for folder in folders
        for path in (folder / LAST_NAME, folder / STEP_NAME)
        if path.exists()
    ]
    if not found:
        raise FileNotFoundError(f"{options.save_dir} holds no checkpoint to resume from")
    return str(max(found, key=lambda path: path.stat().st_mtime))


class Average(Callback):
    """Moving average of the trained weights alone; Lightning's would copy the frozen ones too.

    The decay grows as ``(1 + n) / (10 + n)`` up to `decay`. Averages go into the checkpoints.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._ema: EMAModel | None = None
        self._loaded: dict[str, Any] | None = None
        self._updates = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights of the moment, or from the checkpoint."""
        del trainer
        self._parameters = [p for p in pl_module.parameters() if p.requires_grad]
        self._ema = EMAModel(self._parameters, decay=self.decay)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the averages of a checkpoint, which Lightning has loaded by now."""
        self._updates = trainer.global_step
        if self._ema is not None and self._loaded is not None:
            self._ema.optimization_step = self._loaded["updates"]
            self._ema.shadow_params = [
                value.to(pl_module.device) for value in self._loaded["weights"]
            ]
            self._loaded = None

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Take the weights into the average after every update."""
        del args, kwargs
        if self._ema is not None and trainer.global_step > self._updates:
            self._updates = trainer.global_step
            self._ema.step(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        if self._ema is None:
            return {}
        weights = [value.cpu() for value in self._ema.shadow_params]
        return {"updates": self._ema.optimization_step, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._loaded = state_dict

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the weights, for the time of a block."""
        if self._ema is None:
            yield
            return
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            yield
        finally:
            self._ema.restore(self._parameters)


class WeightWriter(Callback):
    """After every epoch, writes what inference loads: ``checkpoints/lora/`` or ``transformer/``."""

    def __init__(self, average: Average | None) -> None:
        self.average = average

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the weights, or their average if there is one."""
        module: Any = pl_module
        with self.average.applied() if self.average else contextlib.nullcontext():
            state = trainer.strategy.lightning_module_state_dict()  # on all ranks: FSDP gathers
            if not trainer.is_global_zero:
                return
            trained = {name.removeprefix(MODEL_PREFIX): state[name] for name in module.trained}
            folder = checkpoint_folder(trainer)
            if module.options.trainable == "lora":
                config: LoraConfig = module.flux_transformer.peft_config["default"]
                extra = {name: getattr(module.options, name) for name in EXTRA_OPTIONS}
                save_lora(folder / LORA_NAME, trained, config, extra)
            else:
                _write_transformer(folder / TRANSFORMER_NAME, module.flux_transformer, trained)


def _write_transformer(folder: Path, transformer: Any, state: dict[str, Tensor]) -> None:
    """Write a folder for `FluxTransformer2DModel.from_pretrained`."""
    transformer.save_config(folder)
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
