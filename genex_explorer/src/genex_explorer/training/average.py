"""Exponential moving average of the trained weights alone (the frozen ones never change)."""

import contextlib
from collections.abc import Iterator

from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Average:
    """diffusers' `EMAModel`, or nothing at all when it is switched off.

    The decay grows as ``(1 + n) / (10 + n)`` up to `decay`, as in the original.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float, *, enabled: bool) -> None:
        self.parameters = parameters
        self._ema = EMAModel(parameters, decay=decay) if enabled else None

    def __bool__(self) -> bool:
        return self._ema is not None

    @property
    def updates(self) -> int:
        """Updates that have been averaged."""
        return self._ema.optimization_step if self._ema else 0

    def step(self) -> None:
        """Take the weights of the moment into the average."""
        if self._ema:
            self._ema.step(self.parameters)

    def restore(self, averages: list[Tensor], updates: int) -> None:
        """Go on from stored averages, in the order of the parameters."""
        assert self._ema is not None
        self._ema.shadow_params = [
            value.to(parameter.device)
            for value, parameter in zip(averages, self.parameters, strict=True)
        ]
        self._ema.optimization_step = updates

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the weights, for the time of a block."""
        if self._ema is None:
            yield
            return
        self._ema.store(self.parameters)
        self._ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self._ema.restore(self.parameters)
