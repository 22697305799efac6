"""The multi-task loss of step-by-step distillation, over one batch that holds the rows of both tasks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pdss_fl.errors import SettingError

LABEL, RATIONALE = 0, 1
IGNORED = -100


def multi_task_loss(
    logits: Tensor, labels: Tensor, task: Tensor, rationale_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted loss of both tasks and each task's own.

    ``L = (1 - w) * L_label + w * L_rationale``, where each part is the mean cross-entropy over the
    supervised tokens of its task. Up to the factor ``1 - w`` this is ``L_label + lambda * L_rationale``
    of Distilling Step-by-Step (arXiv 2305.02301) with ``lambda = w / (1 - w)``; 0.5 is lambda = 1.

    Parameters
    ----------
    logits : Tensor
        Shape (B, T, V); ``logits[:, t]`` predicts the token at t + 1.
    labels : Tensor
        Shape (B, T), token ids; ``IGNORED`` (-100) at prompt and padding positions.
    task : Tensor
        Shape (B,); ``LABEL`` or ``RATIONALE`` of each row.
    rationale_weight : float
        w in [0, 1).

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        Scalars ``(loss, label_loss, rationale_loss)``. A task without supervised tokens has loss 0.

    Raises
    ------
    SettingError
        If w is out of range; the message names ``distill.rationale-weight``.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORED
    losses = F.cross_entropy(
        logits[:, :-1][supervised].float(), targets[supervised], reduction="none"
    )  # (number of supervised tokens,)
    return weighted_loss(losses, task[:, None].expand_as(targets)[supervised], rationale_weight)


def weighted_loss(losses: Tensor, tasks: Tensor, rationale_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``multi_task_loss`` does, from the loss (N,) and the task (N,) of each supervised token."""
    check_rationale_weight(rationale_weight)
    label_loss, rationale_loss = (_mean(losses[tasks == which]) for which in (LABEL, RATIONALE))
    loss = (1 - rationale_weight) * label_loss + rationale_weight * rationale_loss
    return loss, label_loss, rationale_loss


def check_rationale_weight(value: float) -> None:
    """Raise ``SettingError`` unless the weight of the rationale loss is in [0, 1)."""
    if not 0 <= value < 1:
        raise SettingError(
            f"distill.rationale-weight = {value}: set it in [0, 1); "
            "0 trains on labels alone, 0.5 weighs both tasks alike"
        )


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(1, losses.numel())
