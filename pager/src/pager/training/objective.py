"""What is minimised: the losses of a modality with their weights."""

from torch import Tensor

from pager import losses
from pager.config import TrainConfig
from pager.model import ModelConfig
from pager.training.batches import Batch


def loss_terms(
    pred: Tensor, batch: Batch, model: ModelConfig, config: TrainConfig
) -> dict[str, Tensor]:
    """Weighted loss terms, one value per panorama (b,) each; their sum is minimised."""
    if model.modality == "normals":
        return {"cosine": losses.cosine_loss(pred, batch.target, batch.mask)}
    weights = config.loss
    if not model.metric_depth:
        pred = losses.align_relative(pred, batch.target, batch.mask, log_scale=model.log_scale)
    terms = {
        "l1": weights.l1_loss_weight
        * losses.l1_loss(pred, batch.target, batch.mask, weights.invalid_mask_weight)
    }
    if weights.grad_loss_weight > 0:
        gradient = losses.gradient_loss(pred, batch.target, batch.mask)
        terms["grad"] = weights.grad_loss_weight * gradient
    if weights.normals_consistency_loss_weight > 0:
        consistency = losses.normals_consistency_loss(
            pred, batch.erp_normals, batch.erp_mask, model.depth_range
        )
        terms["normals"] = weights.normals_consistency_loss_weight * consistency
    return terms
