"""The training loop: fetch, add noise, forward, losses, backward, step, EMA, save, validate."""

import dataclasses
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from genex_explorer.conditioning import clip_tokens
from genex_explorer.data.windows import RunSampler
from genex_explorer.edm import denoise, precondition, weighted_error
from genex_explorer.runinfo import RUN_NAME, write_run_info
from genex_explorer.scl import combine, draw_columns, scl_loss, scl_weight
from genex_explorer.training.average import Average
from genex_explorer.training.checkpoints import clear_run, list_checkpoints, rotate, step_of
from genex_explorer.training.noising import NoisyBatch, make_batch, sample_generator
from genex_explorer.training.options import TrainOptions
from genex_explorer.training.saving import WeightFiles
from genex_explorer.training.setup import build_optimizer, build_pipeline, build_windows
from genex_explorer.training.validation import Validator
from genex_explorer.vae import encode_moments
from shared_pano_utils.imageio import atomic_path, write_json

logger = logging.getLogger(__name__)

PROJECT_NAME = "SVDXtend"  # the original's tracker project
LOG_NAME, BEST_NAME = "log.jsonl", "best"
WAIT = timedelta(hours=12)  # of processes for the one that encodes clips, validates or uploads


@dataclass
class LoopState:
    """Everything the loop counts; saved with the Accelerate state."""

    step: int = 0
    best_psnr: float = -math.inf
    shape: dict[str, Any] = field(default_factory=dict)

    def require(self, shape: dict[str, Any]) -> None:
        """Refuse to go on with options that would silently be another training."""
        for name, value in shape.items():
            if self.shape.get(name, value) != value:
                raise ValueError(
                    f"the checkpoint was made with {name} {self.shape[name]}, not {value}; resume "
                    "with the options of the first run"
                )

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate."""
        self.__dict__.update(state)


class Trainer:
    """One training run; see `run`.

    Raises:
        FileNotFoundError, ValueError: something in the options does not fit; before any training.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options, self.output = options, options.output_dir
        self.accelerator = Accelerator(
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            mixed_precision=options.mixed_precision,
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=str(self.output / options.logging_dir),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.accelerator.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but no GPU was found to join them; set "
                "ACCELERATE_USE_CPU=true to train on the CPU, or launch one process"
            )
        kind = self.accelerator.distributed_type
        self.is_sharded = kind == DistributedType.FSDP
        if options.use_ema and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"--use_ema needs whole float32 weights on every process, which {kind.value} does "
                "not keep; drop it, or use DDP"
            )
        if options.trainable == "lora" and self.is_sharded:
            raise ValueError("FSDP splits the weights that adapters are merged into; use DDP")
        options.seed = broadcast_object_list([options.seed])[0]  # drawn by each process
        if options.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        assert options.seed is not None
        self.seed = options.seed
        set_seed(self.seed)  # of new adapters; everything else has generators of its own
        self.validator = Validator(options)
        self.pipeline, names = build_pipeline(options, self.accelerator)
        self.windows, self.total_steps = build_windows(
            options, self.accelerator, self.pipeline, self.seed
        )
        self._prepare()
        self.average = Average(self.trained, options.ema_decay, enabled=options.use_ema)
        self.files = WeightFiles(
            options, self.accelerator, self.unet, self.pipeline, names, self.average,
            is_sharded=self.is_sharded,
        )  # fmt: skip
        self.state = LoopState()
        self.accelerator.register_for_checkpointing(self.state)

    def _shape_of_run(self) -> dict[str, Any]:
        """What must not change at a resumption: it would shift samples or be ignored."""
        names = (
            "seed", "trainable", "per_gpu_batch_size", "gradient_accumulation_steps",
            "learning_rate", "lr_scheduler", "num_frames", "width", "height",
        )  # fmt: skip
        shape = {name: getattr(self.options, name) for name in names}
        return {**shape, "processes": self.accelerator.num_processes}

    def _open_folder(self, resume_from: Path | None) -> None:
        """Make room for the run, or for the rest of one that may have begun elsewhere."""
        if resume_from is None:
            clear_run(self.output)
        else:
            later = [
                p.name for p in list_checkpoints(self.output) if step_of(p) > step_of(resume_from)
            ]
            if later:
                raise ValueError(
                    f"{self.output} holds later checkpoints ({', '.join(later)}) than "
                    f"{resume_from.name}; move or delete them to go on from there"
                )
        if not (self.output / RUN_NAME).exists():
            write_run_info(self.output, dataclasses.asdict(self.options))

    def _forget_log(self) -> None:
        """Drop the rows of updates after the checkpoint, which will be made again."""
        path = self.output / LOG_NAME
        if self.accelerator.is_main_process and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= self.state.step]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def _loader(self) -> DataLoader[dict[str, Any]]:
        """Batches of this process, from the step of the loop on."""
        options, accelerator = self.options, self.accelerator
        per_update = options.gradient_accumulation_steps
        sampler = RunSampler(
            self.state.step * per_update, self.total_steps * per_update,
            options.per_gpu_batch_size, accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        return DataLoader(
            self.windows, options.per_gpu_batch_size, sampler=sampler,
            num_workers=options.num_workers,
        )  # fmt: skip

    def _prepare(self) -> None:
        """Hand network, optimizer and schedule to Accelerate."""
        options, accelerator = self.options, self.accelerator
        unet: Any = self.pipeline.unet
        parameters = [p for p in unet.parameters() if p.requires_grad]
        world = accelerator.num_processes
        optimizer = build_optimizer(options, parameters, world)
        # Accelerate steps a prepared scheduler once per process and update.
        scheduler = get_scheduler(
            options.lr_scheduler, optimizer, num_warmup_steps=options.lr_warmup_steps * world,
            num_training_steps=self.total_steps * world,
        )  # fmt: skip
        plugin = getattr(accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:  # no loader is prepared from which Accelerate could learn it
            size = options.per_gpu_batch_size
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = size
            plugin.deepspeed_config["gradient_clipping"] = options.max_grad_norm
        self.unet, self.optimizer, self.scheduler = accelerator.prepare(unet, optimizer, scheduler)
        self.pipeline.unet = accelerator.unwrap_model(self.unet)
        self.trained = [p for p in self.pipeline.unet.parameters() if p.requires_grad]

    # ---- loop ---------------------------------------------------------------------------------

    def run(self, resume_from: Path | None = None) -> None:
        """Train to the end, from the start or exactly from a checkpoint; write the pipeline."""
        options, accelerator = self.options, self.accelerator
        if accelerator.is_main_process:
            self._open_folder(resume_from)
        accelerator.wait_for_everyone()
        if resume_from is not None:
            accelerator.load_state(str(resume_from))
            self.state.require(self._shape_of_run())
            self._forget_log()
        else:
            self.state.shape = self._shape_of_run()
        if options.report_to != "none":
            flat = {k: v if isinstance(v, (int, float, str)) else str(v)
                    for k, v in dataclasses.asdict(options).items() if k != "hub_token"}  # fmt: skip
            accelerator.init_trackers(PROJECT_NAME, flat)
        with tqdm(
            total=self.total_steps, initial=self.state.step, desc="train",
            disable=not accelerator.is_main_process,
        ) as bar:  # fmt: skip
            self._run_updates(bar)
        accelerator.wait_for_everyone()
        self.files.write_pipeline(self.output)
        if options.push_to_hub and accelerator.is_main_process:
            self.files.push(self.output)
        accelerator.end_training()

    def _run_updates(self, bar: "tqdm[Any]") -> None:
        options, accelerator = self.options, self.accelerator
        self.unet.train()
        sums: dict[str, Tensor] = {}
        for raw in self._loader():
            with accelerator.accumulate(self.unet):
                loss, terms = self._losses(raw)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._clip_gradient(raw)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad(set_to_none=True)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value / options.gradient_accumulation_steps
            if accelerator.sync_gradients:
                means: Any = accelerator.reduce(sums, "mean")
                sums = {}
                self._after_update(means, bar)

    def _losses(self, raw: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a micro-batch, and the numbers to log."""
        options = self.options
        batch = self._noisy_batch(raw)
        with self._autocast():
            v = self.unet(
                batch.network_input,
                precondition(batch.sigma).c_noise,
                encoder_hidden_states=batch.context,
                added_time_ids=batch.ids,
            ).sample
        estimate = denoise(v, batch.noisy, batch.sigma)
        loss = weighted_error(estimate, batch.latents, batch.sigma).mean()
        terms = {"train_loss": loss.detach()}
        if options.scl_loss:
            consistency = self._scl(raw, batch, estimate).mean()
            beta = scl_weight(
                options.scl_schedule, self.state.step, self.total_steps, options.scl_max_weight
            )
            loss = combine(loss, consistency, beta)
            terms |= {"scl_loss": consistency.detach(), "scl_weight": loss.new_tensor(beta)}
        if not math.isfinite(loss.detach()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.step}, sigma "
                f"{batch.sigma.tolist()}, clips {raw['clip_id']}; lower --learning_rate, use bf16, "
                "or check these clips"
            )
        return loss, terms

    def _clip_gradient(self, raw: dict[str, Any]) -> None:
        """Clip, and refuse a gradient that would ruin the weights; fp16 skips such steps itself."""
        accelerator = self.accelerator
        norm = accelerator.clip_grad_norm_(self.trained, self.options.max_grad_norm or math.inf)
        if accelerator.scaler is None and norm is not None and not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {float(norm)} at step {self.state.step}, clips "
                f"{raw['clip_id']}; lower --learning_rate or check these clips"
            )

    def _autocast(self) -> Any:
        """Accelerate's autocast; under DeepSpeed, which only stores the weights in half, ours."""
        accelerator = self.accelerator
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            return accelerator.autocast()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
        return torch.autocast(accelerator.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def _noisy_batch(self, raw: dict[str, Any]) -> NoisyBatch:
        options, vae, device = self.options, self.pipeline.vae, self.accelerator.device
        first = raw["first_frame"].to(device)
        if "moments" in raw:
            moments, tokens = raw["moments"].to(device), raw["token"].to(device)
        else:
            pixels = raw["pixel_values"].to(device, vae.dtype)
            flat = encode_moments(
                vae, pixels.flatten(0, 1), chunk=options.vae_chunk, wrap=options.vae_wrap
            )
            moments = flat.unflatten(0, pixels.shape[:2])
            tokens = clip_tokens(
                self.pipeline.image_encoder, self.pipeline.feature_extractor, first
            )
        generators: list[Any] = [sample_generator(self.seed, i) for i in raw["index"].tolist()]
        return make_batch(vae, moments, first, tokens, options, generators)

    def _scl(self, raw: dict[str, Any], batch: NoisyBatch, estimate: Tensor) -> Tensor:
        options = self.options
        pixels = raw.get("pixel_values")
        numbers = raw["index"].tolist()
        generators = [sample_generator(self.seed, i, "scl") for i in numbers]
        turns = [draw_columns(options.width, options.num_scl_samples, g) for g in generators]
        return scl_loss(
            self.pipeline.vae,
            estimate,
            batch.latents,
            None if pixels is None else pixels.to(self.accelerator.device),
            batch.sigma,
            mode=options.scl_mode,
            columns=turns,
            generators=generators,
            chunk=options.scl_frames,
        )

    def _after_update(self, terms: dict[str, Any], bar: "tqdm[Any]") -> None:
        options, state = self.options, self.state
        self.average.step()
        state.step += 1
        values = {name: float(value) for name, value in terms.items()}
        values["lr"] = self.scheduler.get_last_lr()[0]
        bar.update()
        bar.set_postfix(loss=f"{values['train_loss']:.4f}", lr=f"{values['lr']:.1e}")
        self._log(values)
        is_last = state.step == self.total_steps
        is_due = state.step == 1 or state.step % options.validation_steps == 0 or is_last
        if self.validator and is_due:
            self.validate()
        if state.step % options.checkpointing_steps == 0 or is_last:
            self.save()

    def _log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.state.step)
        if self.accelerator.is_main_process:
            with (self.output / LOG_NAME).open("a") as file:
                file.write(json.dumps({"step": self.state.step, **values}) + "\n")

    # ---- validation and files -------------------------------------------------------------------

    def validate(self) -> None:
        """Write videos, log the numbers on held-out clips, keep the best UNet."""
        accelerator = self.accelerator
        if accelerator.is_main_process or self.is_sharded:  # split weights need all processes
            self.pipeline.unet.eval()
            with self.average.applied(), self._autocast():
                self.validator.write_videos(self.pipeline, self.output, self.state.step)
                values = self.validator.measure(self.pipeline, self.output, self.state.step)
                if values:
                    self._log({f"val_{name}": value for name, value in values.items()})
                    if values["psnr"] > self.state.best_psnr:
                        self.state.best_psnr = values["psnr"]
                        self.files.write_whole(self.output / BEST_NAME / "unet")
                        write_json(self.output / BEST_NAME / "validation.json",
                                   {"step": self.state.step, **values})  # fmt: skip
            self.pipeline.unet.train()
        accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write ``checkpoint-<step>``; it appears under this name when it is complete."""
        accelerator = self.accelerator
        target = self.output / f"checkpoint-{self.state.step}"
        partial = target.with_name(f".{target.name}.partial")
        if accelerator.is_main_process and partial.exists():
            shutil.rmtree(partial)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            rotate(self.output, self.options.checkpoints_total_limit)
        accelerator.wait_for_everyone()
