"""The AdaLN modulation of all denoising steps, computed before the first one.

27 % of the weights of FLUX only turn (time, guidance, pooled text) into the shifts, scales and
gates of a step: 6.46 GB of layers for 59 MB of numbers at 28 steps. Here they stay in main memory
and visit the device once per prompt.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

KEPT_PROMPTS = 4  # source, target and their negatives
# Names of the norms whose `linear` depends on nothing but time, guidance and pooled text.
NORMS = ("norm1", "norm1_context", "norm", "norm_out")


class PlannedModulation(nn.Module):
    """Stands for one modulation layer and returns its output for the running step."""

    def __init__(self, linear: nn.Module) -> None:
        """Keep the layer out of reach of `.to()`, offloading and state dicts of the transformer."""
        super().__init__()
        self.linear = [linear]
        self.current: Tensor | None = None  # (b, features)

    def forward(self, silu_embedding: Tensor) -> Tensor:
        """Give (b, features); the argument, from which the layer would compute it, is not used."""
        if self.current is None:
            raise RuntimeError("the modulation is planned when time_text_embed runs, which it did not")
        return self.current.to(silu_embedding.dtype)


class ModulationPlan:
    """Replaces the modulation layers of a FLUX transformer by tables; exact, for inference only.

    The tables of a call are made when its first step runs: for all timesteps of the scheduler,
    with the guidance and the pooled text of that step. A noise level that the scheduler does not
    have costs a visit of all layers, and is right too. Nothing else of a pipeline changes, so
    every pipeline of diffusers and own loops work.

    Args:
        transformer: `FluxTransformer2DModel`, on the CPU or on its device, LoRA already fused.
        scheduler: whose `timesteps` (0..1000) the pipeline sets before the first step.
    """

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        """Take the layers out; `remove` puts them back."""
        self.transformer = transformer
        self.scheduler = scheduler
        self.planned: list[tuple[nn.Module, PlannedModulation]] = []
        self.tables: dict[tuple[Any, ...], tuple[list[float], list[Tensor]]] = {}
        for name, module in list(transformer.named_modules()):
            if name.rpartition(".")[2] in NORMS and hasattr(module, "linear"):
                planned = PlannedModulation(module.linear)
                module.linear = planned
                self.planned.append((module, planned))
        self.hook = transformer.time_text_embed.register_forward_hook(self._select)

    def remove(self) -> None:
        """Put the layers back, on the device of the first block's weights."""
        self.hook.remove()
        device = self.transformer.x_embedder.weight.device
        for module, planned in self.planned:
            module.linear = planned.linear[0].to(device)
        self.planned, self.tables = [], {}

    @property
    def parameters(self) -> int:
        """How many weights the device need not hold."""
        return sum(p.numel() for _, planned in self.planned for p in planned.linear[0].parameters())

    def _select(self, embedder: Any, inputs: tuple[Tensor, ...], embedding: Tensor) -> None:
        """Point every layer to the row of the step, from the inputs of `time_text_embed`.

        `inputs` are time (b) in 0..1000, guidance times 1000 (b) where the model has one, and the
        pooled text (b, d).
        """
        time, conditions = inputs[0], inputs[1:]
        levels = time.tolist()
        key = tuple(part.detach().float().cpu().numpy().tobytes() for part in conditions)
        known, rows = self.tables.get(key, ([], []))
        if len(set(levels)) > 1 or levels[0] not in known:
            known, rows = self._plan(embedder, time, conditions, embedding)
            if len(known) > 1:
                self._keep(key, known, rows)
        step = known.index(levels[0])
        for (_, planned), table in zip(self.planned, rows, strict=True):
            planned.current = table[step]

    def _plan(
        self, embedder: Any, time: Tensor, conditions: tuple[Tensor, ...], embedding: Tensor
    ) -> tuple[list[float], list[Tensor]]:
        """Tables (steps, b, features) of all layers, and their noise levels (steps) in 0..1000."""
        steps = self._scheduled(time)
        if len(set(time.tolist())) == 1 and (steps == time[0]).any():
            batch = len(time)
            repeated = [part.repeat(len(steps), *[1] * (part.ndim - 1)) for part in conditions]
            embeddings = embedder.forward(steps.repeat_interleave(batch), *repeated)
            known = steps.tolist()
        else:
            logger.info("noise level %g is not in the schedule; planning one step", time[0].item())
            embeddings, known, batch = embedding, time[:1].tolist(), len(time)
        activated = nn.functional.silu(embeddings)
        rows = []
        for _, planned in self.planned:
            layer = planned.linear[0]
            home = next(layer.parameters()).device
            output = layer.to(embeddings.device)(activated)
            layer.to(home)
            rows.append(output.unflatten(0, (-1, batch)))
        return known, rows

    def _scheduled(self, time: Tensor) -> Tensor:
        """Noise levels of the schedule, rounded as the pipeline and the transformer round them."""
        timesteps = self.scheduler.timesteps.to(time.device, time.dtype)
        return timesteps / 1000 * 1000

    def _keep(self, key: tuple[Any, ...], known: list[float], rows: list[Tensor]) -> None:
        self.tables.pop(key, None)
        if len(self.tables) == KEPT_PROMPTS:
            del self.tables[next(iter(self.tables))]
        self.tables[key] = (known, rows)
