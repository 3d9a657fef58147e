"""Reconstruction of masked patches. It reads images only, no labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.types import Meta, Reconstruction, ReconstructionOutputs, Target


class ReconstructionTask:
    """Train `ReconstructionOutputs` to predict the masked patches, and read whole images from them.

    The loss is the mean squared error over the masked patches alone (MAE, https://arxiv.org/abs/2111.06377, section 3).
    """

    field = ''  # it reads no field of targets
    datasets = None  # images of every data set train it

    def loss(self, outputs: ReconstructionOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return `loss_pixels`. `targets` are not used."""
        return {'loss_pixels': masked_errors(outputs).mean()}

    def predict(self, outputs: ReconstructionOutputs, metas: Sequence[Meta]) -> list[Reconstruction]:
        """Return each image, visible patches as they are and masked ones as predicted, in its original size."""
        values = torch.where(outputs.mask[..., None], outputs.patches, outputs.target).float()
        pixels = values.unflatten(-1, (-1, 3)) * outputs.scale[:, :, None] + outputs.shift[:, :, None]
        imgs = _assembled(pixels, outputs.grid)
        cell = imgs.shape[-1] // outputs.grid[1]
        masked = outputs.mask.unflatten(1, outputs.grid)[:, None].float()  # (B, 1, h, w)
        masked = functional.interpolate(masked, scale_factor=cell, mode='nearest')  # (B, 1, H, W)
        rows = zip(imgs, masked, masked_errors(outputs), metas, strict=True)
        reconstructions = []
        for img, mask, error, meta in rows:
            image = (_original(img, meta, mode='bilinear', antialias=True).clamp(0, 1) * 255).round().byte()
            reconstructions.append(Reconstruction(image, _original(mask, meta, mode='nearest-exact')[0] > 0.5, error))
        return reconstructions


def masked_errors(outputs: ReconstructionOutputs) -> Tensor:
    """Return the mean squared error over the masked patches of each image, (B,) float32."""
    errors = (outputs.patches.float() - outputs.target.float()).square().mean(-1)  # (B, L)
    return (errors * outputs.mask).sum(1) / outputs.mask.sum(1)


def _assembled(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return images (B, 3, H, W) of patches (B, h * w, p * p, 3)."""
    patch = round(pixels.shape[2] ** 0.5)
    cells = pixels.unflatten(2, (patch, patch)).unflatten(1, grid)  # (B, h, w, p, p, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, 3, h, p, w, p) -> (B, 3, H, W)


def _original(values: Tensor, meta: Meta, **resize: object) -> Tensor:
    """Return values (C, H, W) of the padded input without its padding, in the image's original size."""
    values = values[:, : meta.unpadded_size[0], : meta.unpadded_size[1]]
    if tuple(values.shape[-2:]) == tuple(meta.orig_size):
        return values
    return functional.interpolate(values[None], tuple(meta.orig_size), **resize)[0]
