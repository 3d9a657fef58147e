"""ViT-Adapter: a plain ViT with a convolutional branch, as a backbone with injectors or as an adapter without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vitdense.adapters.interaction import Cells, Injector
from vitdense.adapters.spatial_prior import Spatial, SpatialPyramid, maybe_recompute
from vitdense.arguments import check
from vitdense.backbones.vit import Tokens, ViT
from vitdense.ops.padding import zero_padding
from vitdense.registry import build
from vitdense.types import Classifier, Features, LayerRequest


class ViTAdapter(nn.Module):
    """ViT-Adapter (Chen et al. 2023, arXiv 2205.08534) around a ViT: a backbone that returns a pyramid.

    `vit` is a ViT or its config. The blocks are run in groups that end at `layers` (default: the ends of the four
    quarters of the depth). Before a group an injector updates the patches from the spatial features (class token and
    registers are unchanged); after it an extractor updates the spatial features from the patches. `gamma_init` is the
    initial scale of the injectors; `checkpointing` recomputes blocks, injectors and
    extractors in the backward pass; the other arguments are those of `SpatialPyramid`, `drop_path` usually the ViT's.

    `add_features='each'` is the published segmentation variant, 'last' the detection variant. The published models have
    6 heads with `deform_ratio=1.0` (tiny, small), or 12 and 16 with 0.5 (base, large), no class token, and LayerScale
    that begins at 1: for theirs write `timm_args=dict(class_token=False, init_values=1.0)` and
    `partial_weights=('ls1', 'ls2')` in the config of the ViT.

    Maps lie at strides 4 (with `detail`), 8, 16, 32 in pixels whatever the patch, for any image that the ViT takes;
    a branch reads them with `BackboneMaps`. Other branches may read layers of the same pass.

    A `frozen` ViT keeps its weights, but gradients pass through it to the injectors; to avoid that, use
    `ReadingViTAdapter`. Raises ConfigError for invalid layers.
    """

    def __init__(
        self,
        vit: ViT | dict,
        *,
        layers: Sequence[int] | None = None,
        prior_channels: int = 64,
        num_heads: int = 6,
        num_points: int = 4,
        deform_ratio: float = 1.0,
        ffn_ratio: float | None = 0.25,
        drop_path: float = 0.0,
        extra_extractors: int = 2,
        add_features: Literal['each', 'last', 'none'] = 'each',
        detail: bool = True,
        gamma_init: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vit: ViT = build(vit)
        _check_amp(self.vit)
        self.embed_dim, self.depth, self.patch_size = self.vit.embed_dim, self.vit.depth, self.vit.patch_size
        self.divisor, self.mean, self.std = self.vit.divisor, self.vit.mean, self.vit.std
        self.has_cls, self.num_prefix_tokens = self.vit.has_cls, self.vit.num_prefix_tokens
        self.stops = _stops(layers, self.depth)
        self.reads = (LayerRequest(self.stops[-1] - 1, normed=False),)
        self.checkpointing = checkpointing
        self.vit.checkpointing |= checkpointing
        attention = dict(num_heads=num_heads, num_points=num_points)
        self.pyramid = SpatialPyramid(
            self.embed_dim,
            self.patch_size,
            len(self.stops),
            prior_channels=prior_channels,
            deform_ratio=deform_ratio,
            ffn_ratio=ffn_ratio,
            drop_path=drop_path,
            extra_extractors=extra_extractors,
            add_features=add_features,
            detail=detail,
            checkpointing=checkpointing,
            **attention,
        )
        self.strides = self.pyramid.strides
        self.out_channels = (self.embed_dim,) * len(self.strides)
        self.injectors = nn.ModuleList(
            Injector(self.embed_dim, num_levels=3, value_ratio=deform_ratio, gamma_init=gamma_init, **attention)
            for _ in self.stops
        )

    def forward(
        self, imgs: Tensor, valid: Tensor | None = None, *, layers: Sequence[LayerRequest | tuple[int, bool]] = ()
    ) -> Features:
        """Return the pyramid in `maps`, and requested layers of the ViT (after injection) as `ViT.forward` does.

        `imgs` is (B, 3, H, W) float, normalised; `valid` as in `Batch`: a padded batch gives those of single images.
        """
        requests = [LayerRequest(index % self.depth, normed) for index, normed in layers]
        tokens = self.vit.embed(imgs, valid)
        patch_cells = Cells.of([tokens.grid], [self.patch_size], valid)
        spatial = self.pyramid.start(imgs, valid)
        reference_points = patch_cells.reference_points(spatial.cells, tokens.x)
        maps, outputs = [], {}
        for index, (start, stop) in enumerate(pairwise((0, *self.stops))):
            tokens = self._inject(index, tokens, reference_points, spatial)
            tokens = self._run(tokens, start, stop, requests, outputs)
            x = self.vit.fold(tokens)
            spatial = self.pyramid.extract(index, spatial, x.flatten(2).transpose(1, 2), patch_cells)
            maps.append(x)
        last = max([self.stops[-1], *(request.index + 1 for request in requests)])
        self._run(tokens, self.stops[-1], last, requests, outputs)
        read = [self.vit.norm(outputs[index]) if normed else outputs[index] for index, normed in requests]
        return Features(
            maps=self.pyramid.finish(spatial, maps),
            layers=tuple(zero_padding(self.vit.fold(state), patch_cells.extents[0]) for state in read),
            cls=tuple(state.x[:, 0] for state in read) if self.has_cls else (),
            valid=valid,
            input_size=tuple(imgs.shape[-2:]),
        )

    def read_classifier(self) -> Classifier:
        """Return the classifier that came with the ViT's weights; see `ViT.read_classifier`."""
        return self.vit.read_classifier()

    def _inject(self, index: int, tokens: Tokens, reference_points: Tensor, spatial: Spatial) -> Tokens:
        """Return `tokens` with patches updated by the injector."""
        ahead = tokens.x.shape[1] - reference_points.shape[1]  # class token and registers
        prefix, patches = tokens.x[:, :ahead], tokens.x[:, ahead:]
        patches = maybe_recompute(
            self.checkpointing and self.training,
            self.injectors[index],
            patches,
            reference_points,
            spatial.tokens,
            spatial.cells,
        )
        return tokens._replace(x=torch.cat([prefix, patches], dim=1) if ahead else patches)

    def _run(
        self, tokens: Tokens, start: int, stop: int, requests: Sequence[LayerRequest], outputs: dict[int, Tokens]
    ) -> Tokens:
        """Run the blocks [start, stop) and store the output of requested ones in `outputs`."""
        wanted = {request.index + 1 for request in requests if start < request.index + 1 <= stop}
        for end in sorted(wanted | {stop}):
            tokens = self.vit.run(tokens, start, end)
            start = end
            if end in wanted:
                outputs[end - 1] = tokens
        return tokens


class ReadingViTAdapter(nn.Module):
    """ViT-Adapter without injectors: it reads layers of an unchanged ViT, as DINOv3 does for segmentation.

    The extractors read `layers`, one after another, with the ViT's final norm if `normed`. With a frozen ViT no graph
    passes through it: only convolutions and extractors train. The other arguments are those of `SpatialPyramid`; maps
    lie at strides 4, 8, 16, 32 in pixels whatever the patch.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layers: Sequence[int] = (2, 5, 8, 11),
        normed: bool = False,
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
        self.patch_stride = patch_stride
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        self.pyramid = SpatialPyramid(
            in_channels,
            patch_stride,
            len(self.layers),
            prior_channels=prior_channels,
            num_heads=num_heads,
            num_points=num_points,
            deform_ratio=deform_ratio,
            ffn_ratio=ffn_ratio,
            drop_path=drop_path,
            extra_extractors=extra_extractors,
            add_features=add_features,
            detail=detail,
            checkpointing=checkpointing,
        )
        self.strides = self.pyramid.strides
        self.out_channels = (in_channels,) * len(self.strides)

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, C, h_i, w_i) at strides 4 to 32; reads its `layers` and `imgs`."""
        grid = tuple(features.layers[0].shape[-2:])
        cells = Cells.of([grid], [self.patch_stride], features.valid)
        spatial = self.pyramid.start(imgs, features.valid)
        for index, x in enumerate(features.layers):
            spatial = self.pyramid.extract(index, spatial, x.flatten(2).transpose(1, 2), cells)
        return features._replace(maps=self.pyramid.finish(spatial, features.layers))


def _stops(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return the block behind the last of each group, counted from 0. Raises ConfigError."""
    layers = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)] if layers is None else layers
    inside = all(-depth <= layer < depth for layer in layers)
    stops = tuple(layer % depth + 1 for layer in layers)
    holds = bool(stops) and inside and all(one < other for one, other in pairwise(stops))
    why = f'layers must grow and lie between 0 and {depth - 1}; negative ones count from the end'
    fix = f'give layers that exist, for example layers=({depth // 2 - 1}, {depth - 1})'
    check(holds, 'ViTAdapter.layers', tuple(layers), why, fix)
    return stops


def _check_amp(vit: ViT) -> None:
    why = 'injectors change the tokens between its blocks, in the precision of the run'
    fix = 'remove amp and use --amp of the run, or read the frozen ViT with ReadingViTAdapter'
    check(vit.amp is None, 'ViTAdapter.vit.amp', vit.amp, why, fix)
