"""Visualisation of a ViT: principal components of its features, and its attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from vitdense import visualize
from vitdense.arguments import check
from vitdense.backbones.attention_maps import attention_rows
from vitdense.backbones.vit import Tokens, ViT
from vitdense.data.transforms.common import ResizeShortSide
from vitdense.types import LayerRequest, Meta, Sample, Target

LONG = 4  # no image is shown to the network longer than this many times its short side
TILES = 8  # panels side by side, at most


class Prepared(NamedTuple):
    """An image as input of the network."""

    imgs: Tensor  # (1, 3, H, W) float32 normalised
    shown: np.ndarray  # (H, W, 3) uint8, the same before that
    orig_size: tuple[int, int]  # (H, W) of the file


class FeatureImages:
    """Sheets (H, W, 3) uint8 of the features or attention of `vit` for images (3, H, W) uint8 of any size and
    proportion.

    Images are resized to a short side of `size` pixels, both sides rounded to whole patches; by default to the side
    of the ViT's own table of positions, and to 448 where that is less but of a usual size. `layers` are block numbers
    from 0, or from the end (-1: the last); features pass the final norm.
    """

    def __init__(self, vit: ViT, *, size: int | None = None, device: torch.device | str = 'cpu') -> None:
        own = min(vit.grid) * vit.patch_size
        size = size or (max(own, 448) if own >= 224 else own)
        why = f'the short side is less than a patch: those of this ViT are {vit.patch_size} x {vit.patch_size} pixels'
        check(size >= vit.patch_size, '--size', size, why, 'choose a larger size, such as 448')
        self.vit = vit.to(device).eval()
        self.device = device
        self.resize = ResizeShortSide(size=size, max_size=LONG * size, divisor=vit.patch_size)

    def components(self, images: Sequence[Tensor], layers: Sequence[int] = (-1,)) -> list[np.ndarray]:
        """Return a sheet for each image: a row for each layer with the image, its components, and those of the
        foreground. Components are those of all `images` together: see `visualize.principal_colors`.
        """
        blocks = self._blocks(layers)
        shown, maps = [], []
        for image in images:
            prepared = self._prepare(image)
            with torch.inference_mode():
                requests = [LayerRequest(block, normed=True) for block in blocks]
                features = self.vit(prepared.imgs, layers=requests)
            shown.append(prepared.shown)
            maps.append([layer[0].float().cpu() for layer in features.layers])
        colors = [visualize.principal_colors([one[row] for one in maps]) for row in range(len(blocks))]
        sheets = []
        for number, image in enumerate(shown):
            tiles, titles = [], []
            for block, of_layer in zip(blocks, colors, strict=True):
                whole, front = (_enlarged(values, image) for values in of_layer[number])
                tiles += [image, whole, front]
                titles += [f'layer {block}', 'components', 'of the foreground']
            sheets.append(visualize.arrange(tiles, columns=3, titles=titles))
        return sheets

    def attention(
        self, image: Tensor, layers: Sequence[int] = (-1,), *, query: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return a sheet with rows for each layer: the image, the attention of the class token to the patches
        averaged over heads, and that of each head.

        `query` (x, y), a pixel of `image`, takes the patch there instead. Maps show the share of attention that
        falls on patches; the titles say how much of the whole that is. Raises ConfigError for a ViT without class
        token and a query outside the image.
        """
        blocks = self._blocks(layers)
        prepared = self._prepare(image)
        tiles: list[np.ndarray] = []
        titles: list[str] = []
        with torch.inference_mode():
            tokens = self.vit.embed(prepared.imgs)
            row = self._row(tokens, prepared, query)
            marked = _marked(prepared, query)
            for block, values in self._attentions(tokens, row, sorted(blocks)):
                added = _attention_tiles(values, marked, block)
                columns = -(-len(added) // -(-len(added) // TILES))
                blank = [(np.zeros_like(marked), '')] * (-len(added) % columns)
                tiles += [tile for tile, _ in [*added, *blank]]
                titles += [title for _, title in [*added, *blank]]
        return visualize.arrange(tiles, columns=columns, titles=titles)

    def _attentions(self, tokens: Tokens, row: int, blocks: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (block, attention (heads, h, w) of token `row` to the patches)."""
        start = 0
        num_special = tokens.x.shape[1] - tokens.grid[0] * tokens.grid[1]
        for block in blocks:
            tokens = self.vit.run(tokens, start, block)
            tokens, values = attention_rows(self.vit, tokens, block, [row])
            start = block + 1
            yield block, values[0, :, 0, num_special:].unflatten(-1, tokens.grid)

    def _row(self, tokens: Tokens, prepared: Prepared, query: tuple[int, int] | None) -> int:
        """Return the index of the query token."""
        if query is None:
            why = 'the attention of the image is that of the class token, which this ViT does not have'
            fix = 'show that of a patch: --query X,Y (a pixel of the image)'
            check(self.vit.has_cls, '--kind', 'attention', why, fix)
            return 0
        (height, width), (x, y) = prepared.orig_size, query
        why = f'it is outside of the image, which is {width} pixels wide and {height} high'
        fix = f'choose a pixel from 0,0 to {width - 1},{height - 1}'
        check(0 <= x < width and 0 <= y < height, '--query', (x, y), why, fix)
        rows, columns = tokens.grid
        return tokens.x.shape[1] - rows * columns + y * rows // height * columns + x * columns // width

    def _blocks(self, layers: Sequence[int]) -> list[int]:
        """Return block numbers from 0, each once, in the given order."""
        depth = self.vit.depth
        for layer in layers:
            why = f'layers of a ViT with {depth} blocks count from 0 to {depth - 1}, or from the end, -1 to {-depth}'
            check(-depth <= layer < depth, '--layers', layer, why, 'name layers that exist')
        return list(dict.fromkeys(layer % depth for layer in layers))

    def _prepare(self, image: Tensor) -> Prepared:
        size = (image.shape[-2], image.shape[-1])
        sample = self.resize(Sample(tv_tensors.Image(image), Target(), Meta('', orig_size=size, size=size)))
        img = sample.img.as_subclass(Tensor)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.vit.mean, self.vit.std))
        imgs = ((img / 255 - mean) / std)[None].to(self.device)
        return Prepared(imgs, np.ascontiguousarray(img.permute(1, 2, 0).numpy()), size)


def _attention_tiles(values: Tensor, image: np.ndarray, block: int) -> list[tuple[np.ndarray, str]]:
    """Return images with their titles for the attention (heads, h, w) of one layer."""
    share = float(values.sum((1, 2)).mean())
    tiles = [
        (image, f'layer {block}'),
        (visualize.heat_map(values.mean(0), image), f'mean, {100 * share:.0f} % on patches'),
    ]
    heads = enumerate(values)
    return tiles + [(visualize.heat_map(head, image, overlay=False), f'head {number}') for number, head in heads]


def _enlarged(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) cells as squares in the size of `image`, of which they are whole parts."""
    factor = image.shape[0] // values.shape[0]
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def _marked(prepared: Prepared, query: tuple[int, int] | None) -> np.ndarray:
    """Return the image with a ring around the query."""
    if query is None:
        return prepared.shown
    import cv2

    height, width = prepared.shown.shape[:2]
    center = (
        int((query[0] + 0.5) * width / prepared.orig_size[1]),
        int((query[1] + 0.5) * height / prepared.orig_size[0]),
    )
    image, radius = prepared.shown.copy(), max(4, min(height, width) // 40)
    cv2.circle(image, center, radius, (0, 0, 0), max(2, radius // 2), cv2.LINE_AA)
    return cv2.circle(image, center, radius, (255, 60, 60), max(1, radius // 3), cv2.LINE_AA)
