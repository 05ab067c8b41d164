"""CLIP score: how well whole panoramas fit their captions."""

from collections.abc import Sequence
from typing import Any

import torch

from dit360.metrics.scores import Score, Side
from dit360.metrics.views import BatchViews

DEFAULT_MODEL = "openai/clip-vit-base-patch16"


class ClipMeter:
    """Mean of ``100 max(cos(image, text), 0)`` over the generated set.

    As in the usual harnesses, the processor of the model crops the middle of the panorama.

    Args:
        captions: of the generated images in their order.
        model: folder or hub id of a CLIP model.
        device: of the model.

    Raises:
        OSError: the model is not there.
    """

    def __init__(self, captions: Sequence[str], model: str, device: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.captions = captions
        network: Any = CLIPModel.from_pretrained(model)
        self.network = network.eval().to(device)
        self.processor: Any = AutoProcessor.from_pretrained(model)
        self.length: int = network.config.text_config.max_position_embeddings
        self.values: list[float] = []

    @torch.inference_mode()
    def update(self, side: Side, views: BatchViews) -> None:
        """Measure one batch; the reference set has no captions."""
        if side == "reference":
            return
        start = len(self.values)
        inputs = self.processor(
            text=list(self.captions[start : start + len(views.erp)]),
            images=list(views.erp.cpu()),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.length,
        ).to(views.erp.device)
        output = self.network(**inputs)  # its embeddings have length 1
        cosine = (output.image_embeds * output.text_embeds).sum(-1)
        self.values += (100 * cosine.clamp(min=0)).tolist()

    def scores(self) -> list[Score]:
        """The mean."""
        value = sum(self.values) / len(self.values)
        return [Score(name="clip_score", better="higher", value=value)]

    def columns(self) -> dict[str, list[float]]:
        """Score of every generated image."""
        return {"clip_score": self.values}
