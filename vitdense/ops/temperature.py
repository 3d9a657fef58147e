"""Scores in (0, 1) at another temperature (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2)."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-6  # distance of a score from 0 and 1


def logits_of(scores: Tensor) -> Tensor:
    """Return the logits of scores, of which 0 and 1 count as 1e-6 from there."""
    return scores.clamp(SMALLEST, 1 - SMALLEST).logit()


def at_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Return `sigmoid(logit(scores) / temperature)`."""
    return (logits_of(scores) / temperature).sigmoid()
