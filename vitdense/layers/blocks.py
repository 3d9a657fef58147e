"""Convolution blocks of dense heads."""

from __future__ import annotations

from typing import Literal, get_args

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check, check_choice

Norm = Literal['batch', 'layer']


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with a ConfigError for training inputs of one value per channel, which have no variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() == 1:
            why = 'batch normalisation got one value per channel: a single image with a single cell has no variance'
            fix = "train with a batch of at least 2 images per process, larger images, or norm='layer'"
            check(False, 'batch normalisation of a map', tuple(x.shape), why, fix)
        return super().forward(x)


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """Return the normalisation of maps of `channels`. Raises ConfigError for an unknown kind."""
    check_choice('norm', kind, get_args(Norm))
    return BatchNorm2d(channels) if kind == 'batch' else LayerNorm2d(channels)


def conv_norm(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, norm: Norm = 'batch'
) -> nn.Sequential:
    """Return a convolution without bias and a normalisation; the output has the size of the input / `stride`."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, norm_of(norm, out_channels))


def pixel_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution to logits, whose initial logits are small."""
    classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier


class ConvBlock(nn.Module):
    """Convolution without bias, normalisation, ReLU; the output has the size of the input / `stride`, rounded up.

    `norm` is 'batch', or 'layer': over the channels of each cell, so that no image changes the output of another.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, norm: Norm = 'batch'
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.norm = norm_of(norm, out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """Normalise and rectify the output of the convolution. Raises ConfigError where it has no variance."""
        return functional.relu(self.norm(x), inplace=True)
