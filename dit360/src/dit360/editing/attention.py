"""Attention in which one panorama takes its kept tokens from another (spec 5.8, D10)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxTransformer2DModel,
    _get_qkv_projections,
)
from torch import Tensor

SOURCE, EDIT = 0, 1


class SharingProcessor(FluxAttnProcessor):
    """`FluxAttnProcessor` for the batch [source, edit]: kept image tokens of both are the source's.

    Queries, keys and values of the edit branch are replaced after projection and norm. Both work
    token by token, so that this equals replacing their inputs and projects only once. Text tokens,
    which stand before the image tokens where a block joins the two, stay as they are.
    """

    def __init__(self, keep: Tensor, like: FluxAttnProcessor) -> None:
        """Share where `keep` (S,), bool, says so; compute as the processor `like` does."""
        super().__init__()
        self.keep = keep
        self._attention_backend = like._attention_backend
        self._parallel_config = like._parallel_config

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Attend; hidden_states (2, S, D), or (2, T + S, D) with the text before the image.

        Returns:
            As the stock processor: image tokens (2, S, D) and text tokens (2, T, D) if the text
            comes as `encoder_hidden_states`, else all tokens (2, T + S, D).
        """
        if len(hidden_states) != 2:
            raise ValueError(
                f"the batch has {len(hidden_states)} panoramas; attention is shared between two, "
                "the source and the edit"
            )
        image, text = self._project(attn, hidden_states, encoder_hidden_states)
        for rows in image:  # [2, (t +) s, heads, d]
            own = rows[EDIT, -len(self.keep) :]
            own.copy_(torch.where(self.keep[:, None, None], rows[SOURCE, -len(own) :], own))
        joint = image if text is None else [torch.cat(p, 1) for p in zip(text, image, strict=True)]
        query, key, value = joint
        if image_rotary_emb is not None:
            rotate: Any = apply_rotary_emb
            query, key = (rotate(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        length = encoder_hidden_states.shape[1]
        image_out = attn.to_out[1](attn.to_out[0](attended[:, length:].contiguous()))
        return image_out, attn.to_add_out(attended[:, :length].contiguous())

    @staticmethod
    def _project(
        attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Normed queries and keys, and values, each (2, tokens, heads, d), new tensors."""
        projected: Any = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = (p.unflatten(-1, (-1, attn.head_dim)) for p in projected[:3])
        image = [attn.norm_q(query), attn.norm_k(key), value]
        if encoder_hidden_states is None:
            return image, None
        query, key, value = (p.unflatten(-1, (-1, attn.head_dim)) for p in projected[3:])
        return image, [attn.norm_added_q(query), attn.norm_added_k(key), value]


@contextmanager
def share_kept_tokens(transformer: FluxTransformer2DModel, keep: Tensor) -> Iterator[None]:
    """Let the transformer share kept tokens within a batch [source, edit]; restore it afterwards.

    Args:
        transformer: with stock attention processors; LoRA adapters may be loaded.
        keep: (S,) bool, image tokens that the edit takes from the source.

    Raises:
        TypeError: a processor is not the stock one (an IP adapter's, for example).
    """
    stock: dict[str, Any] = dict(transformer.attn_processors)
    for name, processor in stock.items():
        if type(processor) is not FluxAttnProcessor:
            raise TypeError(
                f"{name} is a {type(processor).__name__}; attention can be shared with "
                "FluxAttnProcessor only; unload IP adapters and other processors first"
            )
    shared: Any = {name: SharingProcessor(keep, like) for name, like in stock.items()}
    transformer.set_attn_processor(shared)
    try:
        yield
    finally:
        transformer.set_attn_processor(stock)
