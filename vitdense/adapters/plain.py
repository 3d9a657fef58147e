"""Feature maps of the backbone without a learned adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdense.types import Features, LayerRequest


class PlainMaps(nn.Module):
    """Maps of chosen ViT layers at patch stride, one by one or concatenated along channels.

    `layers` are block numbers (negative ones count from the end). `normed` applies the ViT's final norm to each; False
    gives the raw residual stream (benchmark-vfm-ss, where the encoder's final norm is the identity). Has no weights.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layers: Sequence[int] = (-1,),
        normed: bool = True,
        concat: bool = False,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError('PlainMaps needs at least one layer, for example layers=(-1,)')
        self.concat = concat
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        num_maps = 1 if concat else len(self.layers)
        self.out_channels = (in_channels * len(self.layers) // num_maps,) * num_maps
        self.strides = (float(patch_stride),) * num_maps

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` filled from its `layers`; `imgs` is not read."""
        maps = (torch.cat(features.layers, dim=1),) if self.concat else features.layers
        return features._replace(maps=maps)


class BackboneMaps(nn.Module):
    """The pyramid of a backbone that computes one, such as `ViTAdapter`. Has no weights and requests no layers.

    `own_channels` and `own_strides` are those of the backbone. Raises ValueError where it has none.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        own_channels: Sequence[int] = (),
        own_strides: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not own_channels:
            raise ValueError(
                'this backbone makes no maps of its own; take PlainMaps or a pyramid, or a ViTAdapter as backbone'
            )
        self.layers: tuple[LayerRequest, ...] = ()
        self.out_channels = tuple(own_channels)
        self.strides = tuple(own_strides)

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` as they are."""
        return features
