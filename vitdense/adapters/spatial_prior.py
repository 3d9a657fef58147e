"""Spatial branch of ViT-Adapter: convolutions on the image, extractors, and the final pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdense.adapters.interaction import Cells, Extractor, init_weights
from vitdense.arguments import check_choice
from vitdense.layers.blocks import BatchNorm2d, ConvBlock
from vitdense.ops.padding import channels_last, map_extents, zero_padding
from vitdense.ops.resample import restride

STRIDES = (4.0, 8.0, 16.0, 32.0)


class Spatial(NamedTuple):
    """Spatial features between interactions."""

    detail: Tensor | None  # (B, C, h, w) at stride 4, if wanted; takes no part in the interactions
    tokens: Tensor  # (B, S, C) at strides 8, 16 and 32
    cells: Cells  # how `tokens` lie in the image
    valid: Tensor | None  # (B, H, W) bool in pixels, as in `Batch`


class SpatialPrior(nn.Module):
    """The spatial prior module (Chen et al. 2023, section 3.3): a convolutional stem, and maps at strides 4 to 32.

    Three 3x3 convolutions of `channels` and a max-pool reach stride 4; a 3x3 convolution of stride 2 each, of 2, 4 and
    4 times `channels`, the others; 1x1 convolutions bring all to `dim`. Without `detail` the first map is left out.
    """

    def __init__(self, dim: int, *, channels: int = 64, detail: bool = True) -> None:
        super().__init__()
        widths = tuple(channels * factor for factor in (1, 2, 4, 4))
        self.stem = nn.ModuleList(
            ConvBlock(width, channels, kernel_size=3, stride=stride)
            for width, stride in ((3, 2), (channels, 1), (channels, 1))
        )
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            ConvBlock(width, wider, kernel_size=3, stride=2)
            for width, wider in zip(widths[:-1], widths[1:], strict=True)
        )
        self.skipped = 0 if detail else 1
        self.project = nn.ModuleList(nn.Conv2d(width, dim, kernel_size=1) for width in widths[self.skipped :])
        self.project.apply(init_weights)

    def forward(self, imgs: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return maps (B, dim, ceil(H / s), ceil(W / s)) at strides s = 4, 8, 16, 32 of `imgs` (B, 3, H, W)."""
        x, stride = channels_last(_within(imgs, valid, 1)), 1
        for block in self.stem:
            x, stride = _within(block(x), valid, 2), 2
        maps = [self.pool(x)]  # after ReLU the zeros of padding change no maximum
        for block, stride in zip(self.stages, STRIDES[:-1], strict=True):
            maps.append(block(_within(maps[-1], valid, stride)))
        return [project(x) for project, x in zip(self.project, maps[self.skipped :], strict=True)]


class SpatialPyramid(nn.Module):
    """ViT-Adapter without ViT and injectors: prior, extractors and pyramid (Chen et al. 2023, sections 3.2 to 3.4).

    One extractor for each of `num_interactions`, and `extra_extractors` more in the last one. `add_features` is what
    the final pyramid receives of the ViT: the map after 'each' interaction at one level (the published segmentation
    variant; needs 4 interactions), the 'last' map at all levels (the detection variant), or 'none'. `num_heads`,
    `num_points` and `deform_ratio` (share of the channels that is read) are those of the deformable attention. Without
    `detail` there is no map of stride 4, which is too large for detectors whose encoder attends to every cell.

    Attributes: `strides`. Raises ValueError for invalid arguments.
    """

    def __init__(
        self,
        dim: int,
        patch_stride: int,
        num_interactions: int,
        *,
        prior_channels: int = 64,
        num_heads: int = 6,
        num_points: int = 4,
        deform_ratio: float = 1.0,
        ffn_ratio: float | None = 0.25,
        drop_path: float = 0.0,
        extra_extractors: int = 2,
        add_features: Literal['each', 'last', 'none'] = 'each',
        detail: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_choice('SpatialPyramid.add_features', add_features, ('each', 'last', 'none'))
        if add_features == 'each' and num_interactions != len(STRIDES):
            raise ValueError(
                f"add_features='each' gives one map to each of {len(STRIDES)} levels, and there are {num_interactions} "
                "interactions; give as many layers, or use 'last'"
            )
        self.patch_stride = patch_stride
        self.add_features = add_features
        self.checkpointing = checkpointing
        self.strides = STRIDES if detail else STRIDES[1:]
        self.prior = SpatialPrior(dim, channels=prior_channels, detail=detail)
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES) - 1, dim))
        counts = [1] * (num_interactions - 1) + [1 + extra_extractors]
        self.extractors = nn.ModuleList(
            nn.ModuleList(
                Extractor(
                    dim,
                    num_heads=num_heads,
                    num_points=num_points,
                    value_ratio=deform_ratio,
                    ffn_ratio=ffn_ratio,
                    drop_path=drop_path,
                )
                for _ in range(count)
            )
            for count in counts
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2).apply(init_weights) if detail else None
        self.norms = nn.ModuleList(BatchNorm2d(dim) for _ in self.strides)

    def start(self, imgs: Tensor, valid: Tensor | None = None) -> Spatial:
        """Return the spatial features of `imgs` (B, 3, H, W) before the first interaction; `valid` as in `Batch`."""
        maps = self.prior(imgs, valid)
        detail = None if self.up is None else maps.pop(0)
        cells = Cells.of([tuple(x.shape[-2:]) for x in maps], STRIDES[1:], valid)
        tokens = [x.flatten(2).transpose(1, 2) + level for x, level in zip(maps, self.level_embed, strict=True)]
        return Spatial(detail, torch.cat(tokens, dim=1), cells, valid)

    def extract(self, index: int, spatial: Spatial, patches: Tensor, patch_cells: Cells) -> Spatial:
        """Return the spatial features after interaction `index` with `patches` (B, N, C) of the ViT."""
        reference_points = spatial.cells.reference_points(patch_cells, spatial.tokens)
        tokens = spatial.tokens
        for extractor in self.extractors[index]:
            tokens = maybe_recompute(
                self.checkpointing and self.training,
                extractor,
                tokens,
                spatial.cells,
                reference_points,
                patches,
                patch_cells,
            )
        return spatial._replace(tokens=tokens)

    def finish(self, spatial: Spatial, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the pyramid (B, C, h_i, w_i) at `strides`; `maps` (B, C, h, w) are the ViT's, one per interaction."""
        levels = spatial.cells.split(spatial.tokens)
        if self.up is not None:
            height, width = spatial.detail.shape[-2:]
            levels.insert(0, spatial.detail + self.up(levels[0])[..., :height, :width])
        if self.add_features != 'none':
            sources = maps if self.add_features == 'each' else [maps[-1]] * len(STRIDES)
            levels = [
                level + self._at(x, stride, tuple(level.shape[-2:]), spatial.valid)
                for level, x, stride in zip(levels, sources[-len(levels) :], self.strides, strict=True)
            ]
        return tuple(norm(level) for norm, level in zip(self.norms, levels, strict=True))

    def _at(self, x: Tensor, stride: float, size: tuple[int, int], valid: Tensor | None) -> Tensor:
        """Return the ViT's map `x` at another stride, in a map of `size` (h, w)."""
        before = map_extents(valid, self.patch_stride, tuple(x.shape[-2:]))
        return restride(
            zero_padding(x, before), size, stride / self.patch_stride, before, map_extents(valid, stride, size)
        )


def maybe_recompute(recompute: bool, module: nn.Module, *inputs: object) -> Tensor:
    """Call `module`, with activation checkpointing if enabled and gradients are computed."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def _within(x: Tensor, valid: Tensor | None, stride: float) -> Tensor:
    """Return the map `x` at `stride` with zeros outside its images."""
    return zero_padding(x, map_extents(valid, stride, tuple(x.shape[-2:])))
