"""The AdaLN modulation of all denoising steps, computed before the first one.

27 % of the weights of FLUX only turn (time, guidance, pooled text) into the shifts, scales and
gates of a step: 6.46 GB of layers for 59 MB of numbers at 28 steps. Here they stay in main memory
and visit the device once per prompt.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

LONGEST_SCHEDULE = 200  # steps; 2.1 MB each. A scheduler that nobody has set has 1000
KEPT_PROMPTS = 4  # source, target and their negatives
# Names of the norms whose `linear` depends on nothing but time, guidance and pooled text.
NORMS = ("norm1", "norm1_context", "norm", "norm_out")


class PlannedModulation(nn.Module):
    """Stands for one modulation layer and returns its output for the running step.

    Args:
        linear: the layer; it stays out of reach of `.to()`, offloading and state dicts.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._layer = [linear]  # in a list: a submodule would move and be saved with the block
        self.current: Tensor | None = None  # (b, features)

    @property
    def layer(self) -> nn.Module:
        """The layer itself, in main memory."""
        return self._layer[0]

    def forward(self, silu_embedding: Tensor) -> Tensor:
        """Give (b, features); the argument, from which the layer would compute it, is not used."""
        if self.current is None:
            raise RuntimeError("the modulation is planned by time_text_embed, which did not run")
        return self.current.to(silu_embedding.dtype)


class ModulationPlan:
    """Replaces the modulation layers of a FLUX transformer by tables; exact, for inference only.

    The tables of a call are made when its first step runs: for all its noise levels, with the
    guidance and the pooled text of that step. A level that is not among them costs a visit of all
    layers and is right too, so that every pipeline and loop works.

    Args:
        transformer: `FluxTransformer2DModel`, LoRA already fused.
        scheduler: whose `timesteps` (0..1000) a pipeline sets before its first step.
    """

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        """Take the layers out, for good."""
        self.scheduler = scheduler
        self.levels: Tensor | None = None  # of a loop that does not use the scheduler, in 0..1
        self.planned: list[PlannedModulation] = []
        self.tables: dict[tuple[Any, ...], tuple[list[float], list[Tensor]]] = {}
        for name, module in list(transformer.named_modules()):
            if name.rpartition(".")[2] in NORMS and hasattr(module, "linear"):
                module.linear = PlannedModulation(module.linear)
                self.planned.append(module.linear)
        transformer.time_text_embed.register_forward_hook(self._select)

    @property
    def parameters(self) -> int:
        """How many weights the device need not hold."""
        return sum(p.numel() for planned in self.planned for p in planned.layer.parameters())

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
            steps = self._find_steps(time)
            if steps is None:
                logger.info("noise level %g was not announced; planning one step", levels[0])
                known, rows = levels[:1], self._modulate(embedding, len(levels))
            else:
                conditions = [
                    part.repeat(len(steps), *[1] * (part.ndim - 1)) for part in inputs[1:]
                ]
                batch = len(levels)
                all_steps = embedder.forward(steps.repeat_interleave(batch), *conditions)
                known, rows = steps.tolist(), self._modulate(all_steps, batch)
                self._keep(key, known, rows)
        step = known.index(levels[0])
        for planned, table in zip(self.planned, rows, strict=True):
            planned.current = table[step]

    def _find_steps(self, time: Tensor) -> Tensor | None:
        """All noise levels (steps) of the running call in 0..1000, None if `time` is not one.

        They are rounded as the transformer and the loop round them: diffusers' pipelines cast
        timesteps before they divide them by 1000.
        """
        if len(set(time.tolist())) > 1:
            return None
        levels = self.levels
        if levels is None:
            levels = self.scheduler.timesteps.to(time.device, time.dtype) / 1000
        if len(levels) > LONGEST_SCHEDULE:
            return None
        steps = levels.to(time.device, time.dtype) * 1000
        return steps if bool((steps == time[0]).any()) else None

    def _modulate(self, embeddings: Tensor, batch: int) -> list[Tensor]:
        """Outputs (steps, batch, features) of all layers for embeddings (steps * batch, d)."""
        activated = nn.functional.silu(embeddings)
        rows = []
        for planned in self.planned:
            weights = {k: v.to(activated.device) for k, v in planned.layer.state_dict().items()}
            output = torch.func.functional_call(planned.layer, weights, activated)
            rows.append(output.unflatten(0, (-1, batch)))
        return rows

    def _keep(self, key: tuple[Any, ...], known: list[float], rows: list[Tensor]) -> None:
        self.tables.pop(key, None)
        if len(self.tables) == KEPT_PROMPTS:
            del self.tables[next(iter(self.tables))]
        self.tables[key] = (known, rows)


def precompute_modulation(pipeline: Any) -> ModulationPlan:
    """Give the transformer of a FLUX pipeline a `ModulationPlan`; its layers stay where they are.

    Call it before the pipeline moves to its device and after the LoRA was fused.
    """
    plan = ModulationPlan(pipeline.transformer, pipeline.scheduler)
    pipeline.transformer.modulation_plan = plan
    return plan


@contextlib.contextmanager
def announced_levels(pipeline: Any, levels: Sequence[float]) -> Iterator[None]:
    """Tell a `ModulationPlan`, if there is one, the noise levels of a loop of its own.

    Args:
        pipeline: FLUX pipeline, with or without a plan.
        levels: in 0..1, as the transformer is given them (before any rounding of its dtype).
    """
    plan = getattr(pipeline.transformer, "modulation_plan", None)
    if plan is None:
        yield
        return
    plan.levels = torch.tensor(levels, dtype=torch.float32)
    try:
        yield
    finally:
        plan.levels = None
