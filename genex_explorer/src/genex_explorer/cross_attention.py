"""Cross-attention to a single token, without queries and keys.

SVD attends to one CLIP token. The softmax over one key is 1, so that `attn2(x) = to_out(to_v(ctx))`
for every query x: exact, and 3 of the 80 TFLOP of a forward pass at 25 frames of 576x1024 less.
"""

from typing import Any

from torch import Tensor


class SingleTokenProcessor:
    """Attention processor of a cross-attention whose context has one token."""

    def __init__(self, stock: Any):
        self.stock = stock  # the processor which this one stands in for

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,  # noqa: ARG002
    ) -> Tensor:
        """Lay the projected token on every query.

        Args:
            attn: the `Attention`, whose weights stay where they are.
            hidden_states: (N, L, C) queries; only L is used.
            encoder_hidden_states: (N, 1, D). Spatial attention has a row for each frame, temporal
                attention one for each latent pixel: the token of the first frame.
            attention_mask: SVD has none; part of the call of diffusers' `Attention`.

        Returns:
            (N, L, C), a view of (N, 1, C).

        Raises:
            ValueError: the context has several tokens.
        """
        tokens = encoder_hidden_states.shape[1]
        if tokens != 1:
            raise ValueError(
                f"the context has {tokens} tokens, but the single-token shortcut allows 1; "
                "call use_stock_cross_attention(unet) first"
            )
        projection, dropout = attn.to_out
        projected = dropout(projection(attn.to_v(encoder_hidden_states)))
        return projected.expand(-1, hidden_states.shape[1], -1)


def use_single_token_shortcut(unet: Any) -> None:
    """Replace the processors of all cross-attentions of a UNet; weights and keys stay.

    Queries, keys and the norms before them take no part any more. `select_trainable` leaves such
    parameters out if it is called afterwards; DDP would wait for their gradients.
    """
    for _, attention in _cross_attentions(unet):
        if not isinstance(attention.processor, SingleTokenProcessor):
            attention.set_processor(SingleTokenProcessor(attention.processor))


def use_stock_cross_attention(unet: Any) -> None:
    """Undo `use_single_token_shortcut`."""
    for _, attention in _cross_attentions(unet):
        if isinstance(attention.processor, SingleTokenProcessor):
            attention.set_processor(attention.processor.stock)


def idle_parameters(unet: Any) -> set[str]:
    """Names of the parameters that the shortcut bypasses; none without it."""
    idle = tuple(
        f"{name.removesuffix('attn2')}{part}."
        for name, attention in _cross_attentions(unet)
        if isinstance(attention.processor, SingleTokenProcessor)
        for part in ("norm2", "attn2.to_q", "attn2.to_k")
    )
    return {name for name, _ in unet.named_parameters() if name.startswith(idle)}


def _cross_attentions(unet: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
