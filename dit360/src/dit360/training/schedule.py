"""What changes over a run: the samples of an epoch, the learning rate, every random stream.

Random numbers are functions of (seed, purpose, epoch, sample) alone. So ranks never share noise,
a resumed run repeats an unbroken one, and two processes equal one with twice the batch (D16).
"""

import math
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from dit360.training.options import TrainOptions

ORDER, PHOTOS, SAMPLE, STEP = range(4)  # purposes of random streams


def stream_seed(seed: int, purpose: int, *numbers: int) -> int:
    """Seed of a random stream; different arguments give unrelated streams."""
    state = np.random.SeedSequence([seed, purpose, *numbers]).generate_state(1, np.uint64)
    return int(state[0])


def stream(seed: int, purpose: int, *numbers: int) -> torch.Generator:
    """A random stream on the CPU, see `stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *numbers))


def perspective_count(total: int, epoch: int, *, start: int = 2, decay: float = 0.5) -> int:
    """Photos that join the panoramas of an epoch: ``max(1, total decay^(epoch - start + 1))``.

    Args:
        total: photos that there are.
        epoch: from 0.
        start: first epoch with photos.
        decay: share in that epoch, applied again in every later one (spec 5.4).

    >>> [perspective_count(1000, epoch) for epoch in range(7)]
    [0, 0, 500, 250, 125, 62, 31]
    """
    if epoch < start or not total:
        return 0
    return max(1, math.floor(total * decay ** (epoch - start + 1)))


def count_photos(options: TrainOptions, photos: int, epoch: int) -> int:
    """`perspective_count` with the schedule of the options."""
    start, decay = options.perspective_start_epoch, options.perspective_decay
    return perspective_count(photos, epoch, start=start, decay=decay)


def epoch_order(options: TrainOptions, panoramas: int, photos: int, epoch: int) -> list[int]:
    """Samples of an epoch in their order: panoramas are 0.., photos follow; of all ranks."""
    count = count_photos(options, photos, epoch)
    chosen = torch.randperm(photos, generator=stream(options.seed, PHOTOS, epoch))[:count]
    samples = torch.cat([torch.arange(panoramas), panoramas + chosen])
    order = torch.randperm(len(samples), generator=stream(options.seed, ORDER, epoch))
    return samples[order].tolist()


def epoch_lr_factor(epoch: int, max_epochs: int) -> float:
    """Factor of the mix script: from 0.2 to 1 over the first tenth of the epochs (spec 5.4).

    >>> [epoch_lr_factor(epoch, 25) for epoch in range(4)]
    [0.2, 0.6, 1.0, 1.0]
    """
    warm = max(1, max_epochs // 10)
    return 0.2 + 0.8 * epoch / warm if epoch < warm else 1.0


def lr_scheduler(
    options: TrainOptions, optimizer: torch.optim.Optimizer, updates: int
) -> dict[str, Any]:
    """Schedule of the rate in the form that Lightning wants.

    Args:
        options: of the run.
        optimizer: whose rate changes.
        updates: of the whole run, over all ranks at once (D17).
    """
    if options.lr_schedule == "epochs":
        schedule = LambdaLR(optimizer, lambda epoch: epoch_lr_factor(epoch, options.max_epochs))
        return {"scheduler": schedule, "interval": "epoch"}
    warm = options.lr_schedule == "warmup"
    schedule = get_scheduler(
        "constant_with_warmup",
        optimizer,
        num_warmup_steps=math.floor(options.warmup_fraction * updates) if warm else 0,
    )
    return {"scheduler": schedule, "interval": "step"}


def aux_is_on(options: TrainOptions, epoch: int) -> bool:
    """Whether yaw and cube loss count in an epoch (spec 5.3, 5.4)."""
    until = options.aux_until_epoch
    return options.aux_from_epoch <= epoch and (until is None or epoch < until)
