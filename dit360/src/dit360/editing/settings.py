"""What a user can set about an edit; the defaults are those of the original `editing.py`."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["outpaint", "inpaint"]
Method = Literal["inject", "inpaint", "fill"]
TASKS: tuple[Task, ...] = ("outpaint", "inpaint")
METHODS: tuple[Method, ...] = ("inject", "inpaint", "fill")
MAX_SEED = 2**63 - 1
FILL_MODEL = "black-forest-labs/FLUX.1-Fill-dev"
FILL_GUIDANCE = 30.0  # default of the stock pipeline of this model


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Settings of one edit (spec 2.2 and 5.8).

    Attributes:
        prompt: describes the result.
        source_prompt: describes the source, of the "inject" method; None is `prompt`.
        method: "inject" shares the attention of the kept region with an inversion of the source
            (no training), "inpaint" is FLUX with re-noised known latents, "fill" is FLUX.1-Fill.
        num_inference_steps: of the inversion and of the denoising.
        guidance_scale: embedded guidance.
        seed: of every random draw.
        max_sequence_length: T5 tokens of a prompt.
        tau: 0..100; attention is shared while the noise level is above tau / 100, so a smaller
            value preserves more.
        gamma: pull of the inversion towards noise; 1 needs no network.
        eta: pull of the source branch towards the source; 1 needs no velocity of the network.
        start_timestep: part of the steps after which `eta` begins to act.
        stop_timestep: part of the steps after which it ends.
        blend_t: kept latents are those of the source branch after every step from this noise level.
        paste: width in pixels over which the kept part of the source, laid over the result, fades
            out at its border; 1 is a hard edge, 0 leaves the result as it was decoded.
        reconstruct: finish the source branch too and decode it ("inject" only).
    """

    prompt: str
    source_prompt: str | None = None
    method: Method = "inject"
    num_inference_steps: int = 50
    guidance_scale: float = 3.5
    seed: int = 0
    max_sequence_length: int = 512
    tau: float = 50.0
    gamma: float = 1.0
    eta: float = 1.0
    start_timestep: float = 0.0
    stop_timestep: float = 0.99
    blend_t: float = 0.5
    paste: int = 16
    reconstruct: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; use one of {', '.join(METHODS)}")
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}; use 1 or more, such as 50"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; use 0 to {MAX_SEED}")
        if not 1 <= self.max_sequence_length <= 512:
            raise ValueError(f"max_sequence_length is {self.max_sequence_length}; use 1 to 512")
        if not 0 <= self.tau <= 100:
            raise ValueError(f"tau is {self.tau:g}; use 0 (preserve most) to 100 (no sharing)")
        for name in ("gamma", "eta", "start_timestep", "stop_timestep", "blend_t"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; use 0 to 1")
        if self.paste < 0:
            raise ValueError(f"paste is {self.paste}; use 0 (off) or a width in pixels")
        if self.reconstruct and self.method != "inject":
            raise ValueError(
                f"the source is reconstructed by method inject only, not by {self.method}; "
                "leave one of the two out"
            )
