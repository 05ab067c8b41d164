"""The training loop: fetch, forward, loss terms, backward, clip, step, EMA, validate, save.

Several processes (``accelerate launch``) share the panoramas of an epoch; each validates its part.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from diffusers.training_utils import EMAModel
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from pager.checkpoint import CONFIG_NAME, load_base_model, load_model, save_checkpoint
from pager.config import TrainConfig
from pager.data.panoinfinigen import stack_samples
from pager.data.registry import open_dataset, require_maps
from pager.model import ModelConfig, PagerModel
from pager.runinfo import OLD_SUFFIX, STATE_FOLDER, write_run_info
from pager.schedule import exponential_decay_factor
from pager.training.batches import Batch, EpochSampler, prepare_batch, yaw_augment
from pager.training.objective import loss_terms
from pager.training.parameters import (
    add_lora,
    has_lora,
    merged_state,
    save_adapter,
    trainable_parameters,
)
from pager.training.report import MAX_PANORAMAS, Reporter, batch_pictures
from shared_pano_utils.imageio import atomic_path

logger = logging.getLogger(__name__)

DEBUG_PANORAMAS = 8  # with `debug`, per split


@dataclass
class LoopState:
    """Everything the loop counts; saved with the Accelerate state."""

    epoch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    best_val_loss: float = math.inf

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate."""
        self.__dict__.update(state)


class Trainer:
    """One training run in `output`; see `run`."""

    def __init__(self, config: TrainConfig, output: Path) -> None:
        self.config, self.output = config, output
        training = config.training
        self.accelerator = Accelerator(
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            mixed_precision=training.mixed_precision,
            log_with=None if config.logging.report_to == "none" else config.logging.report_to,
            project_dir=str(output / config.logging.logging_path),
        )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.accelerator.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but no GPU was found to join them; set "
                "ACCELERATE_USE_CPU=true to train on the CPU, or launch one process"
            )
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded and training.use_EMA:
            raise ValueError(
                "FSDP splits the weights, and EMA needs them whole; pass --use_EMA false"
            )
        if config.seed is None:
            raise ValueError("seed is null; a run needs a number, so that it can be resumed")
        self.seed = config.seed
        set_seed(config.seed)
        self.model = self._build_model()
        self._build_data()
        self._build_optimizer()
        self.state = LoopState()
        self.accelerator.register_for_checkpointing(self.state)
        if self.ema is not None:
            self.accelerator.register_for_checkpointing(self.ema)

    # ---- set-up -------------------------------------------------------------------------------

    def _build_model(self) -> PagerModel:
        options = self.config.model
        known = {f.name for f in dataclasses.fields(ModelConfig)}
        section = {k: v for k, v in dataclasses.asdict(options).items() if k in known}
        if options.checkpoint_path is not None:
            model = load_model(
                options.checkpoint_path,
                pretrained_path=options.pretrained_path,
                overrides={k: v for k, v in section.items() if not k.endswith("_path")},
            )
        else:
            model = load_base_model(ModelConfig(**section))
        if self.config.training.lora_rank > 0:
            add_lora(model.unet, self.config.training.lora_rank)
        if self.config.training.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            model.vae.enable_gradient_checkpointing()
        return model.to(self.accelerator.device)

    def _build_data(self) -> None:
        data = self.config.data
        wanted = {self.model.config.modality}
        if self.config.loss.normals_consistency_loss_weight > 0:
            wanted.add("normals")
        require_maps(data.dataset, wanted)

        def dataset(split: str) -> Dataset[dict[str, Any]]:
            found: Any = open_dataset(data.dataset, data.data_path, split, data.scenes)
            if self.config.debug:
                return Subset(found, range(min(DEBUG_PANORAMAS, len(found))))
            return found

        def validation_loader(split: str) -> DataLoader[dict[str, Any]]:
            found: Any = dataset(split)
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            share = Subset(found, range(rank, len(found), world))
            return DataLoader(share, data.batch_size, collate_fn=stack_samples)

        panoramas: Any = dataset("train")
        workers = 0 if self.config.debug else self.config.training.num_workers
        loader = DataLoader(
            panoramas, data.batch_size, sampler=EpochSampler(len(panoramas), self.seed),
            collate_fn=stack_samples, num_workers=workers, drop_last=True,
            persistent_workers=workers > 0,
        )  # fmt: skip
        self.train_loader = self.accelerator.prepare(loader)
        if len(self.train_loader) == 0:
            raise ValueError(
                f"the training split holds fewer panoramas than one batch of {data.batch_size} per "
                "process; lower --batch_size"
            )
        validation = self.config.validation
        self.val_loader = validation_loader("val") if validation.run_validation else None
        self.tiny_val_loader = (
            validation_loader("tiny_val") if validation.run_tiny_validation else None
        )

    def _build_optimizer(self) -> None:
        training, options = self.config.training, self.config.optimization
        parameters = trainable_parameters(self.model, training.only_train_attention_layers)
        updates_per_epoch = math.ceil(len(self.train_loader) / training.gradient_accumulation_steps)
        self.total_steps = training.num_train_epochs * updates_per_epoch
        if training.max_train_steps is not None:
            self.total_steps = min(self.total_steps, training.max_train_steps)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
        )
        # Accelerate steps a prepared scheduler once per process and update.
        scheduler_steps = self.total_steps * self.accelerator.num_processes
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda n: (
                1.0  # a short run to find mistakes
                if self.config.debug
                else exponential_decay_factor(
                    n, scheduler_steps, options.lr_exp_warmup_steps, options.lr_exp_final_ratio
                )
            ),
        )
        unet = self.model.unet
        self.ema = (
            EMAModel(unet.parameters(), decay=training.EMA_decay) if training.use_EMA else None
        )
        self.trained = parameters
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:  # the loader was prepared before, so Accelerate cannot look it up
            micro_batch = self.config.data.batch_size
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = micro_batch
        self.model.unet, self.optimizer, self.scheduler = self.accelerator.prepare(
            unet, optimizer, scheduler
        )

    # ---- loop ---------------------------------------------------------------------------------

    def run(self, resume_from: Path | None = None) -> None:
        """Train to the end, from the start or exactly from a saved Accelerate state."""
        if resume_from is not None:
            self.accelerator.load_state(str(resume_from))
            if self.ema is not None:  # Accelerate restores it to the CPU
                self.ema.to(self.accelerator.device)
        elif self.accelerator.is_main_process:
            write_run_info(self.output, dataclasses.asdict(self.config))
            with atomic_path(self.output / CONFIG_NAME) as path:
                OmegaConf.save(OmegaConf.structured(self.config), path)
        self.reporter = Reporter(self.accelerator, self.config, self.output)
        bar = tqdm(
            total=self.total_steps, initial=self.state.step, desc="train",
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        while self.state.step < self.total_steps:
            self._run_epoch(bar)
            self.state.epoch += 1
            self.state.batch_in_epoch = 0
            done = self.state.step >= self.total_steps
            if self.val_loader is not None:
                self._validate_epoch()
            if done or self.state.epoch % self.config.logging.save_frequency == 0:
                self.save()
        bar.close()
        self.reporter.close()

    def _run_epoch(self, bar: "tqdm[Any]") -> None:
        state, config = self.state, self.config
        # The prepared loader counts epochs itself and hands its count to the sampler.
        self.train_loader.set_epoch(state.epoch)
        loader: Any = self.train_loader
        if state.batch_in_epoch:
            loader = self.accelerator.skip_first_batches(loader, state.batch_in_epoch)
        self.model.unet.train()
        for raw in loader:
            started = time.perf_counter()
            if config.data.use_data_augmentation:
                raw = yaw_augment(raw, self.seed, state.epoch)
            batch = prepare_batch(raw, self.model.config, self.accelerator.device)
            pred, terms = self._train_step(batch)
            state.batch_in_epoch += 1
            if not self.accelerator.sync_gradients:
                continue
            state.step += 1
            bar.update()
            if state.step % config.logging.loss_report_frequency == 0:
                self._report(bar, terms, time.perf_counter() - started)
            if state.step % config.logging.img_report_frequency == 0:
                pictures = batch_pictures(batch, pred, self.model.config)
                self.reporter.panoramas("train", pictures, state.step)
            if self.tiny_val_loader and state.step % config.validation.tiny_val_frequency == 0:
                self._log({"tiny_val_loss": self.validate(self.tiny_val_loader, "tiny_val")})
                self.model.unet.train()
            if state.step % config.logging.save_steps == 0:
                self.save()
            if state.step >= self.total_steps:
                return

    def _train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        accelerator = self.accelerator
        with accelerator.accumulate(self.model.unet):
            with accelerator.autocast():
                pred = self.model(batch.faces)
            terms = loss_terms(pred.float(), batch, self.model.config, self.config)
            loss = torch.stack(list(terms.values())).sum(0).mean()
            self._require_finite("loss", loss.detach(), terms, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients and self.config.optimization.clip_grad_norm:
                norm = accelerator.clip_grad_norm_(
                    self.trained, self.config.optimization.max_grad_norm
                )
                self._require_finite("gradient norm", norm, terms, batch)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        if accelerator.sync_gradients and self.ema is not None:
            self.ema.step(self.model.unet.parameters())
        return pred.detach(), terms

    def _require_finite(
        self, name: str, value: Tensor | float | None, terms: dict[str, Tensor], batch: Batch
    ) -> None:  # DeepSpeed gives the norm as a number, or None before it knows it
        if value is not None and not math.isfinite(value):
            parts = {key: term.tolist() for key, term in terms.items()}
            raise FloatingPointError(
                f"{name} is {float(value)} at step {self.state.step} (terms {parts}, panoramas "
                f"{batch.ids}); lower --learning_rate or check these panoramas"
            )

    # ---- validation and files -------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, loader: DataLoader[dict[str, Any]], name: str) -> float:
        """Mean training loss per panorama with EMA weights, without augmentation.

        The first panoramas go into a picture called `name`.
        """
        unet = self.model.unet
        if self.ema is not None:
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        unet.eval()
        total, count = 0.0, 0
        pictures: list[np.ndarray] = []
        for raw in loader:
            batch = prepare_batch(raw, self.model.config, self.accelerator.device)
            with self.accelerator.autocast():
                pred = self.model(batch.faces)
            terms = loss_terms(pred.float(), batch, self.model.config, self.config)
            total += float(torch.stack(list(terms.values())).sum())
            count += len(batch.ids)
            if len(pictures) < MAX_PANORAMAS:
                pictures += batch_pictures(batch, pred, self.model.config)
        if self.ema is not None:
            self.ema.restore(unet.parameters())
        self.reporter.panoramas(name, pictures, self.state.step)
        sums = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
        total, count = cast(Tensor, self.accelerator.reduce(sums)).tolist()
        return total / max(count, 1)

    def _validate_epoch(self) -> None:
        assert self.val_loader is not None
        loss = self.validate(self.val_loader, "val")
        self._log({"val_loss": loss, "epoch": self.state.epoch})
        if loss < self.state.best_val_loss:
            self.state.best_val_loss = loss
            self._save_weights(self.output / "checkpoint-best")

    def save(self) -> None:
        """Write ``checkpoint-last`` and the state to resume from, replacing the old one.

        At every moment a complete state lies in one of two places, see `recover_state`.
        """
        self._save_weights(self.output / "checkpoint-last")
        target = self.output / STATE_FOLDER
        partial, old = (self.output / f"{STATE_FOLDER}{end}" for end in (".partial", OLD_SUFFIX))
        if self.accelerator.is_main_process and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if target.exists():
                target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save_weights(self, folder: Path) -> None:
        # Split weights are gathered by all processes together.
        whole: Any = self.accelerator.get_state_dict(self.model.unet) if self.is_sharded else None
        if not self.accelerator.is_main_process:
            return
        unet = self.accelerator.unwrap_model(self.model.unet)
        config = dataclasses.replace(
            self.model.config,
            pretrained_path=self.config.model.pretrained_path,
            checkpoint_path=self.config.model.checkpoint_path,
        )
        if self.ema is not None:
            self._write(folder / "original", unet, config, whole)
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        self._write(folder, unet, config, whole)
        if self.ema is not None:
            self.ema.restore(unet.parameters())

    def _write(
        self, folder: Path, unet: Any, config: ModelConfig, whole: dict[str, Tensor] | None
    ) -> None:
        if not has_lora(unet):
            save_checkpoint(folder, unet, config, state=whole)
            return
        save_checkpoint(folder, unet, config, state=merged_state(unet))
        save_adapter(unet, folder / "lora")

    def _report(self, bar: "tqdm[Any]", terms: dict[str, Tensor], seconds: float) -> None:
        values = {key: term.mean().item() for key, term in terms.items()}
        rate = self.scheduler.get_last_lr()[0]
        bar.set_postfix({**{k: f"{v:.4f}" for k, v in values.items()}, "lr": f"{rate:.2e}"})
        self._log({**values, "lr": rate, "seconds": round(seconds, 3)})

    def _log(self, values: dict[str, float]) -> None:
        self.reporter.scalars(values, self.state.step)
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.state.step, **values}) + "\n")
