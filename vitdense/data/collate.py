"""Collate function: samples to a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitdense.types import Batch, Sample, Target


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a uint8 batch, padded with zeros at the right and the bottom to the largest height and width.

    Targets are not padded and become plain tensors. `valid` stays None: the model's Preprocessor pads to
    whole patches, sets `valid` and normalises on the device.
    """
    height = max(sample.img.shape[-2] for sample in samples)
    width = max(sample.img.shape[-1] for sample in samples)
    imgs = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    for img, sample in zip(imgs, samples, strict=True):
        img[:, : sample.img.shape[-2], : sample.img.shape[-1]] = sample.img.as_subclass(Tensor)
    return Batch(imgs, [_plain(sample.target) for sample in samples], [sample.meta for sample in samples])


def _plain(target: Target) -> Target:
    """Return plain tensors: tv_tensors are slower in later operations."""
    return Target(*(None if field is None else field.as_subclass(Tensor) for field in target))
