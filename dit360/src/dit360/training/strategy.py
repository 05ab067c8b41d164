"""How a run is spread over devices: device lists, number formats, DeepSpeed and FSDP."""

import importlib.util
import logging
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, FSDPPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import nn

from dit360.training.options import TrainOptions

logger = logging.getLogger(__name__)

_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}
_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def lightning_precision(options: TrainOptions) -> str:
    """The number format as Lightning 2 calls it ("16" of the original is "16-mixed")."""
    return _PRECISIONS.get(options.precision, options.precision)


def frozen_dtype(options: TrainOptions, strategy: str) -> torch.dtype:
    """Format in which the transformer is loaded.

    Half precision where the weights stay as they are; trained ones and those that FSDP splits
    are float32 and cast by autocast.
    """
    if strategy == "fsdp" or (options.trainable == "all" and strategy != "deepspeed_stage_2"):
        return torch.float32
    return _HALF.get(lightning_precision(options), torch.float32)


def parse_devices(devices: str, accelerator: str) -> int | list[int] | str:
    """Devices in the form that Lightning wants.

    Args:
        devices: "2" is a count, "0,1" or "0," a list, "-1" all, "auto".
        accelerator: a CPU is counted, so that a list becomes its length.

    Raises:
        ValueError: none of these forms.
    """
    if devices == "auto":
        return devices
    try:
        numbers = [int(part) for part in devices.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(
            f"--devices is {devices!r}, use a count (2), a list (0,1), -1 for all, or auto"
        ) from error
    if "," in devices:
        return len(numbers) if accelerator == "cpu" else numbers
    if numbers == [0]:
        logger.info("--devices 0 means one device; write 2 for two, or 0,1 for a list")
        return 1
    if len(numbers) != 1 or numbers[0] < -1:
        raise ValueError(f"--devices is {devices!r}, use a count (2), a list (0,1), or -1 for all")
    return numbers[0]


def uses_cuda(options: TrainOptions) -> bool:
    """Whether the run will be on CUDA devices."""
    return options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def choose_strategy(options: TrainOptions) -> str:
    """Name of the strategy: what was asked for, or the original's where it can run.

    Raises:
        ValueError: the strategy needs CUDA or a package that is missing, or the CPU cannot
            compute in the number format.
    """
    on_cpu = options.accelerator == "cpu" or (
        options.accelerator == "auto" and not torch.accelerator.is_available()
    )
    # A dry run may be that of another machine.
    if on_cpu and lightning_precision(options) == "16-mixed" and not options.dry_run:
        raise ValueError(f"--precision {options.precision} runs on GPUs only; use 32 or bf16-mixed")
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    if options.strategy == "auto":
        fits = uses_cuda(options) and has_deepspeed and not options.ema_decay
        return "deepspeed_stage_2" if fits else "auto"
    if options.strategy in ("deepspeed_stage_2", "fsdp") and not uses_cuda(options):
        raise ValueError(f"--strategy {options.strategy} runs on CUDA only; use ddp or auto")
    if options.strategy == "deepspeed_stage_2" and not has_deepspeed:
        raise ValueError(
            "--strategy deepspeed_stage_2 needs deepspeed: pip install -e '.[deepspeed]'"
        )
    return options.strategy


def trainer_arguments(options: TrainOptions, strategy: str, module: Any) -> dict[str, Any]:
    """Arguments of Lightning's Trainer that spread `module` (with `vae` and blocks) over devices."""
    precision: Any = lightning_precision(options)
    arguments: dict[str, Any] = {
        "accelerator": options.accelerator,
        "devices": parse_devices(options.devices, "cuda" if uses_cuda(options) else "cpu"),
    }
    if strategy == "deepspeed_stage_2":
        return arguments | {
            "strategy": deepspeed_strategy(options),
            "plugins": [_Float32DeepSpeed(precision)],
        }
    if strategy == "fsdp":
        return arguments | {
            "strategy": fsdp_strategy(precision, module.vae),
            "plugins": [_Float32Fsdp(precision)],
        }
    return arguments | {"strategy": strategy, "precision": precision}


def deepspeed_strategy(options: TrainOptions) -> Strategy:
    """ZeRO stage 2 with Lightning's defaults, as in the original; frozen weights are not saved."""
    return DeepSpeedStrategy(
        stage=2,
        exclude_frozen_parameters=not options.save_full,
        logging_batch_size_per_gpu=options.train_batch_size,
    )


def fsdp_strategy(precision: str, vae: nn.Module) -> Strategy:
    """Transformer blocks split over the devices; the VAE stays whole, and float32."""
    from diffusers.models.transformers.transformer_flux import (
        FluxSingleTransformerBlock,
        FluxTransformerBlock,
    )
    from torch.distributed.fsdp import MixedPrecision

    half = _HALF.get(precision)
    return FSDPStrategy(
        auto_wrap_policy={FluxTransformerBlock, FluxSingleTransformerBlock},
        ignored_modules=[vae],
        # Inputs of the whole step are pixels, which stay float32 (D18); blocks cast theirs.
        mixed_precision=MixedPrecision(
            param_dtype=half,
            reduce_dtype=half,
            buffer_dtype=half,
            cast_forward_inputs=True,
            cast_root_forward_inputs=False,
        ),
    )


class _Float32DeepSpeed(DeepSpeedPrecision):
    """Does not round the batch to half precision: the VAE reads float32 pixels (D18)."""

    def convert_input(self, data: Any) -> Any:
        return data


class _Float32Fsdp(FSDPPrecision):
    """As `_Float32DeepSpeed`."""

    def convert_input(self, data: Any) -> Any:
        return data
