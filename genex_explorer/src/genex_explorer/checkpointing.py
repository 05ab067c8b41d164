"""Gradient checkpointing that includes the temporal transformer blocks, and what it keeps.

The stock switch recomputes residual modules and spatial transformer blocks and leaves out the
temporal ones: the very blocks that are trained, with two MLPs of width 8 C over every latent pixel
of every frame. At 25 frames of 576x1024 they hold 54 of the 61 GiB which stock checkpointing keeps.
"""

import copy
from typing import Any, Literal

import torch
from diffusers.models.attention import TemporalBasicTransformerBlock
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

Scope = Literal["none", "stock", "full"]
SCOPES: tuple[Scope, ...] = ("none", "stock", "full")


class CheckpointedTemporalBlock(TemporalBasicTransformerBlock):
    """The stock block, which obeys the checkpointing switch of its UNet.

    Existing blocks become this class; they gain no parameter, so keys and weights stay as they are.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any  # set by the UNet on modules with a `gradient_checkpointing`

    def forward(
        self, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """As the stock block; with checkpointing only inputs are kept for the backward pass."""
        forward = super().forward
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(
                forward, hidden_states, num_frames, encoder_hidden_states
            )
        return forward(hidden_states, num_frames, encoder_hidden_states)


def enable_checkpointing(unet: Any, scope: Scope) -> None:
    """Choose what the backward pass recomputes; loss and gradients are the same in every scope.

    Recomputing whole attention modules would keep less still (4.4 instead of 6.8 GiB at 25 frames
    of 576x1024), but needs more at its peak (13.8 instead of 13.2 GiB), when the largest unit is
    recomputed.

    Args:
        unet: `UNetSpatioTemporalConditionModel`, with or without adapters, not wrapped.
        scope: "none"; "stock", residual modules and spatial blocks; "full", also temporal blocks.
    """
    if scope not in SCOPES:
        raise ValueError(
            f"checkpointing scope {scope!r} is unknown; use one of {', '.join(SCOPES)}"
        )
    unet.disable_gradient_checkpointing()
    block_class = CheckpointedTemporalBlock if scope == "full" else TemporalBasicTransformerBlock
    for module in unet.modules():
        if isinstance(module, TemporalBasicTransformerBlock):
            module.__class__ = block_class
    if scope != "none":
        unet.enable_gradient_checkpointing()


def activation_bytes(unet: Any, frames: int, height: int, width: int, scope: Scope) -> int:
    """Bytes that one clip's forward pass keeps for the backward pass, without running it.

    Counted on fake tensors, so a UNet on the meta device will do and seconds suffice at any size.
    The peak of a step lies above by the largest block under recomputation.

    Args:
        unet: gives shapes, dtypes and which parameters are trained; it is left as it is.
        frames: frames of the clip.
        height: latent rows.
        width: latent columns.
        scope: see `enable_checkpointing`.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode():
        twin = _fake_copy(unet)
        enable_checkpointing(twin, scope)
        weights = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        config, dtype = unet.config, unet.dtype
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            twin(
                torch.empty(1, frames, config.in_channels, height, width, dtype=dtype),
                torch.empty(1),
                torch.empty(1, 1, config.cross_attention_dim, dtype=dtype),
                torch.empty(1, 3, dtype=dtype),
                return_dict=False,
            )
    return sum(storage.nbytes() for storage in kept.values())


def _fake_copy(unet: Any) -> Any:
    """Copy of a UNet whose parameters are fake tensors on the CPU; needs an active fake mode."""
    fakes: dict[int, Any] = {
        id(parameter): nn.Parameter(
            torch.empty(parameter.shape, dtype=parameter.dtype),
            requires_grad=parameter.requires_grad,
        )
        for parameter in unet.parameters()
    }
    return copy.deepcopy(unet, fakes)
