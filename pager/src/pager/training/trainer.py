"""The training loop: fetch, forward, loss terms, backward, clip, step, EMA, validate, save."""

import dataclasses
import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pager import losses
from pager.checkpoint import CONFIG_NAME, load_base_model, load_model, save_checkpoint
from pager.config import TrainConfig
from pager.data.panoinfinigen import PanoInfinigen, stack_samples
from pager.model import ModelConfig, PagerModel
from pager.runinfo import write_run_info
from pager.schedule import exponential_decay_factor
from pager.training.batches import Batch, EpochSampler, prepare_batch, yaw_augment
from shared_pano_utils.imageio import atomic_path

logger = logging.getLogger(__name__)

STATE_FOLDER = "training_checkpoint"


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


def loss_terms(
    pred: Tensor, batch: Batch, model: ModelConfig, config: TrainConfig
) -> dict[str, Tensor]:
    """Weighted loss terms, one value per panorama (b,) each; their sum is minimised."""
    if model.modality == "normals":
        return {"cosine": losses.cosine_loss(pred, batch.target, batch.mask)}
    weights = config.loss
    if not model.metric_depth:
        pred = losses.align_relative(pred, batch.target, batch.mask, log_scale=model.log_scale)
    terms = {
        "l1": weights.l1_loss_weight
        * losses.l1_loss(pred, batch.target, batch.mask, weights.invalid_mask_weight)
    }
    if weights.grad_loss_weight > 0:
        gradient = losses.gradient_loss(pred, batch.target, batch.mask)
        terms["grad"] = weights.grad_loss_weight * gradient
    if weights.normals_consistency_loss_weight > 0:
        consistency = losses.normals_consistency_loss(
            pred, batch.erp_normals, batch.erp_mask, model.depth_range
        )
        terms["normals"] = weights.normals_consistency_loss_weight * consistency
    return terms


def trainable_parameters(model: PagerModel, only_attention: bool) -> list[torch.nn.Parameter]:
    """Freeze all but what is trained: transformer blocks (and `conv_in` for "uv"), or the UNet."""
    with_uv = model.config.unet_positional_encoding == "uv"
    for name, parameter in model.unet.named_parameters():
        chosen = "transformer_blocks" in name or (with_uv and name.startswith("conv_in"))
        parameter.requires_grad_(chosen or not only_attention)
    return [p for p in model.unet.parameters() if p.requires_grad]


class Trainer:
    """One training run in `output`; see `run`."""

    def __init__(self, config: TrainConfig, output: Path) -> None:
        self.config, self.output = config, output
        training = config.training
        self.accelerator = Accelerator(
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            mixed_precision=training.mixed_precision,
        )
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
            model = load_model(options.checkpoint_path, overrides={"face_size": options.face_size})
        else:
            model = load_base_model(ModelConfig(**section))
        if self.config.training.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            model.vae.enable_gradient_checkpointing()
        return model.to(self.accelerator.device)

    def _build_data(self) -> None:
        data = self.config.data

        def loader(split: str, sampler: EpochSampler | None) -> DataLoader[dict[str, Any]]:
            dataset = PanoInfinigen(data.data_path, split, data.scenes)
            if sampler is not None:
                sampler.length = len(dataset)
            workers = self.config.training.num_workers if sampler is not None else 0
            return DataLoader(
                dataset, data.batch_size, sampler=sampler, collate_fn=stack_samples,
                num_workers=workers, drop_last=sampler is not None, persistent_workers=workers > 0,
            )  # fmt: skip

        sampler = EpochSampler(0, self.config.seed)
        self.train_loader = self.accelerator.prepare(loader("train", sampler))
        if len(self.train_loader) == 0:
            raise ValueError(
                f"the training split holds fewer panoramas than one batch of {data.batch_size} per "
                "process; lower --batch_size"
            )
        validation = self.config.validation
        self.val_loader = loader("val", None) if validation.run_validation else None
        self.tiny_val_loader = loader("tiny_val", None) if validation.run_tiny_validation else None

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
            lambda n: exponential_decay_factor(n, scheduler_steps, options.lr_exp_warmup_steps),
        )
        unet = self.model.unet
        self.ema = (
            EMAModel(unet.parameters(), decay=training.EMA_decay) if training.use_EMA else None
        )
        self.trained = parameters
        self.model.unet, self.optimizer, self.scheduler = self.accelerator.prepare(
            unet, optimizer, scheduler
        )

    # ---- loop ---------------------------------------------------------------------------------

    def run(self, resume_from: Path | None = None) -> None:
        """Train to the end, from the start or exactly from a saved Accelerate state."""
        if resume_from is not None:
            self.accelerator.load_state(str(resume_from))
        elif self.accelerator.is_main_process:
            write_run_info(self.output, dataclasses.asdict(self.config))
            with atomic_path(self.output / CONFIG_NAME) as path:
                OmegaConf.save(OmegaConf.structured(self.config), path)
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
                raw = yaw_augment(raw, config.seed, state.epoch)
            batch = prepare_batch(raw, self.model.config, self.accelerator.device)
            terms = self._train_step(batch)
            state.batch_in_epoch += 1
            if not self.accelerator.sync_gradients:
                continue
            state.step += 1
            bar.update()
            if state.step % config.logging.loss_report_frequency == 0:
                self._report(bar, terms, time.perf_counter() - started)
            if self.tiny_val_loader and state.step % config.validation.tiny_val_frequency == 0:
                self._log({"tiny_val_loss": self.validate(self.tiny_val_loader)})
                self.model.unet.train()
            if state.step % config.logging.save_steps == 0:
                self.save()
            if state.step >= self.total_steps:
                return

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        accelerator = self.accelerator
        with accelerator.accumulate(self.model.unet):
            with accelerator.autocast():
                pred = self.model(batch.faces)
            terms = loss_terms(pred.float(), batch, self.model.config, self.config)
            loss = torch.stack(list(terms.values())).sum(0).mean()
            self._require_finite("loss", loss, terms, batch)
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
        return terms

    def _require_finite(
        self, name: str, value: Tensor | None, terms: dict[str, Tensor], batch: Batch
    ) -> None:
        if value is not None and not bool(torch.isfinite(value)):
            parts = {key: term.tolist() for key, term in terms.items()}
            raise FloatingPointError(
                f"{name} is {value.item()} at step {self.state.step} (terms {parts}, panoramas "
                f"{batch.ids}); lower --learning_rate or check these panoramas"
            )

    # ---- validation and files -------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, loader: DataLoader[dict[str, Any]]) -> float:
        """Mean training loss per panorama with EMA weights, without augmentation."""
        unet = self.model.unet
        if self.ema is not None:
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        unet.eval()
        total, count = 0.0, 0
        for raw in loader:
            batch = prepare_batch(raw, self.model.config, self.accelerator.device)
            with self.accelerator.autocast():
                pred = self.model(batch.faces)
            terms = loss_terms(pred.float(), batch, self.model.config, self.config)
            total += float(torch.stack(list(terms.values())).sum())
            count += len(batch.ids)
        if self.ema is not None:
            self.ema.restore(unet.parameters())
        return total / max(count, 1)

    def _validate_epoch(self) -> None:
        assert self.val_loader is not None
        loss = self.validate(self.val_loader)
        self._log({"val_loss": loss, "epoch": self.state.epoch})
        if loss < self.state.best_val_loss:
            self.state.best_val_loss = loss
            self._save_weights(self.output / "checkpoint-best")

    def save(self) -> None:
        """Write ``checkpoint-last`` and the state to resume from, replacing the old one."""
        self._save_weights(self.output / "checkpoint-last")
        target, partial = self.output / STATE_FOLDER, self.output / f"{STATE_FOLDER}.partial"
        if self.accelerator.is_main_process and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        self.accelerator.wait_for_everyone()

    def _save_weights(self, folder: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        unet = self.accelerator.unwrap_model(self.model.unet)
        config = dataclasses.replace(
            self.model.config,
            pretrained_path=self.config.model.pretrained_path,
            checkpoint_path=self.config.model.checkpoint_path,
        )
        if self.ema is None:
            save_checkpoint(folder, unet, config)
            return
        save_checkpoint(folder / "original", unet, config)
        self.ema.store(unet.parameters())
        self.ema.copy_to(unet.parameters())
        save_checkpoint(folder, unet, config)
        self.ema.restore(unet.parameters())

    def _report(self, bar: "tqdm[Any]", terms: dict[str, Tensor], seconds: float) -> None:
        values = {key: term.mean().item() for key, term in terms.items()}
        rate = self.scheduler.get_last_lr()[0]
        bar.set_postfix({**{k: f"{v:.4f}" for k, v in values.items()}, "lr": f"{rate:.2e}"})
        self._log({**values, "lr": rate, "seconds": round(seconds, 3)})

    def _log(self, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.state.step, **values}) + "\n")
