"""Semantic label maps from class probabilities and masks of queries, computed by bands of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from vitdense.ops.upsample import axis_taps

BAND_VALUES = {'cpu': 1 << 22, 'cuda': 1 << 27}  # mask logits and scores of a band of rows


def class_scores(probs: Tensor, masks: Tensor) -> Tensor:
    """Return the semantic scores of pixels, (..., K, h, w): the sum over the queries of `probs` (..., Q, K)
    times the sigmoid of `masks` (..., Q, h, w) (Cheng et al. 2021, MaskFormer, section 3.4, semantic inference).
    """
    return torch.einsum('...qk,...qhw->...khw', probs, masks.sigmoid())


def log_scores(probs: Tensor, masks: Tensor) -> Tensor:
    """Return the logarithm of `class_scores`, which can be averaged over windows and views."""
    return class_scores(probs, masks).clamp_(min=1e-9).log_()


def labels_of_masks(
    probs: Tensor, masks: Tensor, *, input_size: tuple[int, int], crop: tuple[int, int], out: tuple[int, int]
) -> Tensor:
    """Return the class of the largest `class_scores` at every pixel: (H, W) uint8, or int16 above 255 classes.

    `masks` (Q, h, w), which cover `input_size`, are resized to it, cut to the top left `crop` and resized to `out`
    before they become scores; neither (Q, H, W) nor (K, H, W) is ever in memory as a whole. `probs` are (Q, K).
    """
    probs, masks = probs.detach().float(), masks.detach().float()
    rows, columns = (axis_taps(*axis) for axis in zip(masks.shape[-2:], input_size, crop, out, strict=True))
    limit = BAND_VALUES.get(masks.device.type, BAND_VALUES['cpu'])
    height = max(limit // (sum(probs.shape) * len(columns.cells)), 1)
    labels = []
    for cells, weights in zip(rows.cells.split(height), rows.weights.split(height), strict=True):
        top, bottom = int(cells.min()), int(cells.max()) + 1
        wide = resize_axis(masks[:, top:bottom], columns.cells, columns.weights, axis=2)
        band = resize_axis(wide, cells - top, weights, axis=1)
        labels.append(class_scores(probs, band).argmax(0))
    return torch.cat(labels).to(torch.uint8 if probs.shape[1] <= 255 else torch.int16)


def resize_masks(masks: Tensor, *, input_size: tuple[int, int], crop: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Return (Q, H, W): `masks` (Q, h, w) over `input_size` resized to it, cut to the top left `crop`, resized to
    `out`.
    """
    rows, columns = (axis_taps(*axis) for axis in zip(masks.shape[-2:], input_size, crop, out, strict=True))
    return resize_axis(resize_axis(masks, columns.cells, columns.weights, axis=2), rows.cells, rows.weights, axis=1)


def resize_axis(values: Tensor, cells: Tensor, weights: Tensor, *, axis: int) -> Tensor:
    """Return one axis of `values` (Q, h, w) resized by the taps `cells` and `weights` (out, T)."""
    shape = (-1, 1) if axis == 1 else (-1,)
    taps = zip(cells.to(values.device).unbind(1), weights.to(values.device).unbind(1), strict=True)
    return sum(values.index_select(axis, cell) * weight.view(shape) for cell, weight in taps)
