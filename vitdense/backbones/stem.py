"""Convolutional stem in place of the linear patch embedding, for ViTs trained from scratch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.layers.blocks import BatchNorm2d
from vitdense.ops.padding import map_extents, zero_padding


class ConvStem(nn.Module):
    """A convolutional stem (Xiao et al. 2021, "Early Convolutions Help Transformers See Better", section 4).

    Patches of 2 ** n pixels take n steps that halve the map and double its channels, the last to `embed_dim`. A step is
    a 3x3 convolution of stride 2 and one of stride 1, each with batch normalisation and ReLU. A 1x1 convolution gives
    the tokens. `grid_size` (h, w) is that of the table of positions.

    Raises ConfigError for patches that are no power of two, or channels that cannot be halved so often.
    """

    def __init__(self, embed_dim: int, patch_size: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        num_steps = patch_size.bit_length() - 1
        holds = 2**num_steps == patch_size and num_steps > 0 and embed_dim % 2 ** (num_steps - 1) == 0
        why = f'every step halves the map and doubles the channels, the last to {embed_dim}'
        fix = 'choose a patch size of 2, 4, 8, 16 or 32, and channels that are a multiple of half of it'
        check(holds, 'ViT.patch_size', patch_size, why, fix)
        self.patch_size, self.grid_size = (patch_size, patch_size), tuple(grid_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = (3, *(embed_dim >> step for step in reversed(range(num_steps))))
        self.halve = nn.ModuleList(
            _conv_norm(width, wider, stride=2) for width, wider in zip(widths[:-1], widths[1:], strict=True)
        )
        self.smooth = nn.ModuleList(_conv_norm(width, width) for width in widths[1:])
        self.proj = nn.Conv2d(embed_dim, embed_dim, kernel_size=1)

    def forward(self, imgs: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (B, h, w, embed_dim) tokens of `imgs` (B, 3, H, W). Padding in `valid` is zeroed."""
        x = imgs
        for step, layers in enumerate(zip(self.halve, self.smooth, strict=True), 1):
            for layer in layers:
                x = layer(x)
                x = zero_padding(x, map_extents(valid, 2**step, tuple(x.shape[-2:])))
        return self.proj(x).permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)


def set_stem(model: nn.Module, stem: Literal['patch', 'conv']) -> None:
    """Set the stem of a timm ViT."""
    if stem == 'conv':
        patches = model.patch_embed
        model.patch_embed = ConvStem(model.embed_dim, patches.patch_size[0], patches.grid_size)


def _conv_norm(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, BatchNorm2d(out_channels), nn.ReLU(inplace=True))
