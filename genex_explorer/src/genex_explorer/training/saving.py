"""Writing and reading the weights of a run: checkpoints, the best UNet, the final pipeline."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from genex_explorer.loading import load_encoders, load_unet, quiet_bars
from genex_explorer.parameters import merged_state, save_adapter
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.training.average import Average
from genex_explorer.training.checkpoints import (
    TRAINED_EMA_NAME,
    TRAINED_NAME,
    read_trained,
    write_tensors,
    write_unet,
)
from genex_explorer.training.options import TrainOptions
from shared_pano_utils.imageio import write_json

AVERAGE_NAME = "average.json"


class WeightFiles:
    """The weights of one run on disk.

    Args:
        options: of the run.
        accelerator: knows which process writes and how to gather split weights.
        unet: the prepared network.
        pipeline: holds the same network unwrapped.
        names: its trained parameters.
        average: their moving average.
    """

    def __init__(
        self,
        options: TrainOptions,
        accelerator: Accelerator,
        unet: Any,
        pipeline: GenexPipeline,
        names: list[str],
        average: Average,
        *,
        is_sharded: bool,
    ) -> None:
        self.options, self.accelerator, self.unet = options, accelerator, unet
        self.pipeline, self.names, self.average = pipeline, names, average
        self.is_sharded = is_sharded
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def _save(self, models: list[Any], weights: list[Any], folder: str) -> None:
        """Accelerate's hook: the original's layout instead of one flat file."""
        del models
        whole: Any = self.accelerator.get_state_dict(self.unet) if self.is_sharded else None
        if self.accelerator.is_main_process:
            self._write_checkpoint(Path(folder), whole, ema=False)
            if self.average:
                with self.average.applied():
                    self._write_checkpoint(Path(folder), None, ema=True)
                write_json(Path(folder) / AVERAGE_NAME, {"updates": self.average.updates})
        weights.clear()

    def _write_checkpoint(
        self, folder: Path, whole: dict[str, Tensor] | None, *, ema: bool
    ) -> None:
        unet: Any = self.pipeline.unet
        if self.options.save_trainable_only or self.options.trainable == "lora":
            state = whole or dict(unet.named_parameters())
            name = TRAINED_EMA_NAME if ema else TRAINED_NAME
            write_tensors(folder / name, {key: state[key] for key in self.names})
        else:
            write_unet(folder / ("unet_ema" if ema else "unet"), unet, whole or unet.state_dict())

    def _load(self, models: list[Any], folder: str) -> None:
        if self.is_sharded:  # Accelerate has put the split weights in place
            models.clear()
            return
        parameters = dict(self.accelerator.unwrap_model(self.unet).named_parameters())
        with torch.no_grad():
            for name, value in read_trained(Path(folder), self.names, ema=False).items():
                parameters[name].copy_(value)
        if self.average:
            averages = read_trained(Path(folder), self.names, ema=True)
            record = json.loads((Path(folder) / AVERAGE_NAME).read_text(encoding="utf-8"))
            self.average.restore([averages[name] for name in self.names], record["updates"])
        models.clear()

    def write_whole(self, folder: Path) -> None:
        """Write the UNet with adapters merged and the frozen weights as they were loaded."""
        options = self.options
        state: dict[str, Tensor] = (
            cast(Any, self.accelerator.get_state_dict(self.unet))
            if self.is_sharded
            else merged_state(self.pipeline.unet)
        )
        if not self.accelerator.is_main_process:
            return
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if options.cast_frozen or is_deepspeed:  # which keeps all weights in half precision
            path = options.pretrain_unet or options.pretrained_model_name_or_path
            assert path is not None
            of_pipeline = options.non_ema_revision or options.revision
            original = load_unet(path, None if options.pretrain_unet else of_pipeline).state_dict()
            # The name of the weight that a trained tensor, or its adapter, changes.
            changed = {name.split(".lora_")[0] + ".weight" if ".lora_" in name else name
                       for name in self.names}  # fmt: skip
            state = {name: state[name] if name in changed else original[name] for name in original}
        write_unet(folder, self.pipeline.unet, state)

    def write_pipeline(self, output: Path) -> None:
        """Write everything that `StableVideoDiffusionPipeline.from_pretrained` reads."""
        with self.average.applied():
            self.write_whole(output / "unet")
            if self.options.trainable == "lora" and self.accelerator.is_main_process:
                save_adapter(self.pipeline.unet, output / "lora")
        if self.accelerator.is_main_process:
            assert self.options.pretrained_model_name_or_path is not None
            vae, encoder = load_encoders(
                self.options.pretrained_model_name_or_path, self.options.revision
            )
            vae.save_pretrained(output / "vae")
            with quiet_bars():
                encoder.save_pretrained(output / "image_encoder")
            self.pipeline.scheduler.save_pretrained(output / "scheduler")
            self.pipeline.feature_extractor.save_pretrained(output / "feature_extractor")
            self.pipeline.stock().save_config(output)

    def push(self, output: Path) -> None:
        """Upload the pipeline without checkpoints, logs and videos."""
        from huggingface_hub import HfApi

        api = HfApi(token=self.options.hub_token)
        name = self.options.hub_model_id or output.resolve().name
        repository = api.create_repo(name, exist_ok=True).repo_id
        parts = ["model_index.json", "lora/*"]
        parts += [f"{part}/*" for part in self.pipeline.components]
        api.upload_folder(repo_id=repository, folder_path=output, allow_patterns=parts)
