"""Windowed attention with unchanged blocks: partition of tokens into windows, and the inverse.

Norms and MLPs work on single tokens, so that a whole block run on a batch of windows attends within windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check, check_choice

Side = int | torch.SymInt


@dataclass(frozen=True)
class WindowPartition:
    """Windowed blocks of a ViT and the shape of their windows (ViTDet, arXiv 2203.16527, section 3).

    `size` is the side of a window in cells of the grid, or (rows, columns); `split` cuts the grid of each image into
    split x split windows, or (rows, columns) of them. Exactly one is set. With `size` the cost is linear in the
    area of the image; `split` needs no padding where it divides the grid. `global_blocks` attend to all tokens: their
    indices, negative ones from the end, or their count: then they are evenly spaced and include the last block.

    Tokens before the patches are repeated in every window. `prefix` selects the input of global blocks: their
    'average', or 'each' copy, as in RF-DETR (roboflow/rf-detr); then they are averaged after the last block, where
    layers are read, and before blocks with an attention mask over all tokens. An exported program with free image sizes
    takes images larger than a window.

    Raises ValueError for invalid sizes.
    """

    size: int | tuple[int, int] | None = None
    split: int | tuple[int, int] | None = None
    global_blocks: int | Sequence[int] = 4
    prefix: Literal['average', 'each'] = 'average'

    def __post_init__(self) -> None:
        check_choice('WindowPartition.prefix', self.prefix, ('average', 'each'))
        if (self.size is None) == (self.split is None):
            raise ValueError('a window needs either its size in cells or a split of the grid, exactly one of them')
        if min(self._sides) < 1:
            raise ValueError(f'windows have at least one cell and grids at least one window, got {self._sides}')

    @property
    def _sides(self) -> tuple[int, int]:
        sides = self.split if self.size is None else self.size
        return (sides, sides) if isinstance(sides, int) else tuple(sides)

    def blocks(self, depth: int) -> frozenset[int]:
        """Return the indices of the windowed blocks. Raises ConfigError for indices out of range."""
        if isinstance(self.global_blocks, int):
            count = self.global_blocks
            chosen = [depth * (number + 1) // count - 1 for number in range(count)] if count <= depth else [depth]
        else:
            chosen = [index + depth if index < 0 else index for index in self.global_blocks]
        holds = all(0 <= index < depth for index in chosen)
        why = f'blocks of a ViT with {depth} count from 0 to {depth - 1}, or from the end, -1 to {-depth}'
        fix = 'give indices in this range, or the count of global blocks'
        check(holds, 'WindowPartition.global_blocks', self.global_blocks, why, fix)
        return frozenset(range(depth)) - frozenset(chosen)

    def layout(
        self,
        grid: tuple[Side, Side],
        grids: Sequence[tuple[int, int]] | None,
        num_special_tokens: int,
        *,
        batch: Side,
        device: torch.device,
    ) -> Layout:
        """Return how `batch` images of `grid` cells, and `num_special_tokens` tokens before them, are cut.

        `grids` are the cells of each image where some are padded: a split is then of the image's own grid.
        """
        (rows, height), (columns, width) = (self._axis(axis, grid, grids, device) for axis in (0, 1))
        across = columns.cell.shape[1]
        count, cells = rows.cell.shape[1] * across, height * width
        total, length = num_special_tokens + grid[0] * grid[1], num_special_tokens + cells
        images = torch.arange(batch, device=device)[:, None, None]
        cell = _crossed(rows.cell)[0] * grid[1] + _crossed(columns.cell)[1]  # (b, p, q, r, c): b is 1 or B
        cell = cell.flatten(1, 2).flatten(2).expand(batch, -1, -1)  # -> (B, windows, cells)
        inside = (_crossed(rows.inside)[0] & _crossed(columns.inside)[1]).flatten(1, 2).flatten(2).expand(batch, -1, -1)
        lead = torch.arange(num_special_tokens, device=device).expand(batch, count, -1)
        window = rows.window[:, :, None] * across + columns.window[:, None]  # (b, h, w)
        offset = rows.offset[:, :, None] * width + columns.offset[:, None]
        full = grids is None and rows.full and columns.full
        return Layout(
            index=(torch.cat([lead, num_special_tokens + cell], dim=2) + images * total).flatten(0, 1),
            back=(window * length + num_special_tokens + offset).flatten(1) + images[:, 0] * count * length,
            shows=None if full else inside.any(2),
            mask=None if full else _mask(inside, num_special_tokens),
            count=count,
            window=(height, width),
            num_special_tokens=num_special_tokens,
        )

    def _axis(
        self, axis: int, grid: tuple[Side, Side], grids: Sequence[tuple[int, int]] | None, device: torch.device
    ) -> tuple[_Axis, Side]:
        """Return how one axis is cut, and the length of a window along it."""
        side, length = grid[axis], self._sides[axis]
        small = isinstance(side, int) and side < length  # symbolic sides of an export count as large
        lengths = torch.tensor([own[axis] for own in grids], device=device) if grids else None  # (B,)
        steps = None
        if self.size is not None:
            step = side if small else length
            count = (side + step - 1) // step
        else:
            step, count = (side + length - 1) // length, side if small else length
        if self.size is None and grids:
            steps = (lengths + length - 1) // length
            step = max((own[axis] + length - 1) // length for own in grids)
        return _cut_axis(side, step, count, lengths, steps, device), step


class _Axis(NamedTuple):
    """One axis of the grid, cut: b is 1, or B where images differ."""

    cell: Tensor  # (b, windows, cells of one) index of the row (column) in the grid
    inside: Tensor  # the same shape, bool: it lies in the image
    window: Tensor  # (b, side) window of a row (column)
    offset: Tensor  # (b, side) its index in that window
    full: bool  # no window has padding


def _cut_axis(
    side: Side, step: Side, count: Side, lengths: Tensor | None, steps: Tensor | None, device: torch.device
) -> _Axis:
    """Return the partition of one axis; `steps` (B,) are window lengths where images differ, `step` the largest."""
    along = torch.arange(step, device=device)
    line = torch.arange(side, device=device)[None]  # (1, side)
    own = step if steps is None else steps[:, None]  # (B, 1)
    begin = (torch.arange(count, device=device) * own)[..., None]  # (windows, 1) or (B, windows, 1)
    cell = (begin + along).expand(1 if steps is None else -1, -1, -1)
    limit = side if lengths is None else lengths[:, None, None]
    inside = (cell < limit) & (along < (step if steps is None else steps[:, None, None]))
    known = isinstance(side, int) and isinstance(step, int) and isinstance(count, int)  # no symbolic image size
    return _Axis(
        cell=cell.clamp(max=side - 1),
        inside=inside,
        window=(line // own).clamp(max=count - 1),
        offset=line % own,
        full=known and count * step == side,
    )


def _mask(inside: Tensor, num_special_tokens: int) -> Tensor:
    """Return the attention mask of each window, (B, windows, cells) -> (B * windows, 1, 1, L)."""
    mask = functional.pad(inside.flatten(0, 1), (num_special_tokens, 0), value=True)
    if not num_special_tokens:
        mask = mask | ~mask.any(1, keepdim=True)  # outputs of windows of padding are unused, but must be finite
    return mask[:, None, None]


def _crossed(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Return (b, windows, cells) of one axis as rows (b, p, 1, r, 1), and as columns (b, 1, q, 1, c)."""
    return axis[:, :, None, :, None], axis[:, None, :, None]


class Layout(NamedTuple):
    """Index maps between tokens and windows. L is the number of tokens of a window, those before the patches first."""

    index: Tensor  # (B * windows, L) index into the B * N tokens
    back: Tensor  # (B, h * w) index of the patch in the B * windows * L tokens
    shows: Tensor | None  # (B, windows) bool, False: padding only; None: there is no padding
    mask: Tensor | None  # (B * windows, 1, 1, L) bool, False = padding; None: there is none
    count: Side  # windows of an image
    window: tuple[Side, Side]  # cells of a window
    num_special_tokens: int  # tokens before the patches

    def cut(self, x: Tensor) -> Tensor:
        """Return the windows of x, (B, N, C) -> (B * windows, L, C)."""
        # the backward pass of embedding is deterministic on every device
        return functional.embedding(self.index, x.flatten(0, 1))

    def join(self, x: Tensor) -> Tensor:
        """Return the tokens of all windows joined, (B * windows, L, C) -> (B, N, C)."""
        patches = functional.embedding(self.back, x.flatten(0, 1))
        if not self.num_special_tokens:
            return patches
        lead = x[:, : self.num_special_tokens].unflatten(0, (self.back.shape[0], self.count))  # (B, windows, lead, C)
        if self.shows is None:
            return torch.cat([lead.mean(1), patches], dim=1)
        shows = self.shows.to(x.dtype)[:, :, None, None]
        return torch.cat([(lead * shows).sum(1) / shows.sum(1), patches], dim=1)

    def rotation(self, rope: Tensor, grid: tuple[Side, Side]) -> Tensor:
        """Return the rotation of every window, which is that of the first: `rope` of one block is (..., n, 2d).

        A rotation with a leading B becomes one with a leading B * windows.
        """
        extra = rope.shape[-2] - grid[0] * grid[1]  # inserted tokens
        rows = torch.arange(self.window[0], device=rope.device).clamp(max=grid[0] - 1)
        columns = torch.arange(self.window[1], device=rope.device).clamp(max=grid[1] - 1)
        cells = (rows[:, None] * grid[1] + columns).flatten()
        rope = rope.index_select(-2, torch.cat([torch.arange(extra, device=rope.device), extra + cells]))
        return rope.repeat_interleave(self.count, dim=0) if rope.ndim == 4 else rope

    def merge(self, x: Tensor) -> Tensor:
        """Return the windows of each image in one row with all tokens, (B * windows, L, C) -> (B, windows * L, C)."""
        return x.unflatten(0, (self.back.shape[0], self.count)).flatten(1, 2)

    def part(self, x: Tensor) -> Tensor:
        """Return the rows of `merge` as windows again."""
        return x.unflatten(1, (self.count, -1)).flatten(0, 1)

    def merged_mask(self) -> Tensor | None:
        """Return the attention mask of `merge`, (B, 1, 1, windows * L) bool; windows of padding are masked."""
        if self.mask is None:
            return None
        cells = self.mask[:, 0, 0].unflatten(0, self.shows.shape)  # -> (B, windows, L)
        return (cells & self.shows[..., None]).flatten(1)[:, None, None]

    def merged_rotation(self, rope: Tensor, grid: tuple[Side, Side]) -> Tensor:
        """Return the rotation for `merge`: `rope` of one block, (..., n, 2d) -> (B, 1 or heads, n', 2d)."""
        prefix = self.num_special_tokens + grid[0] * grid[1] - rope.shape[-2]
        rope = not_rotated(rope, prefix)
        rope = rope[(None,) * (4 - rope.ndim)].expand(self.back.shape[0], -1, -1, -1).transpose(1, 2)
        row = self.merge(self.cut(rope.flatten(2)))  # (B, N, heads, 2d) -> (B, windows * L, heads * 2d)
        return row.unflatten(2, rope.shape[2:]).transpose(1, 2)[:, :, prefix:]


def not_rotated(rope: Tensor, count: int) -> Tensor:
    """Return `rope` (..., n, 2d), sines and cosines, behind `count` identity rotations."""
    sin, cos = rope[..., :1, :].chunk(2, dim=-1)
    identity = torch.cat([torch.zeros_like(sin), torch.ones_like(cos)], dim=-1)
    return torch.cat([identity.expand(*rope.shape[:-2], count, -1), rope], dim=-2)


class ImageDropPath(nn.Module):
    """timm's `DropPath` (stochastic depth), sampled once per image and shared by its windows."""

    def __init__(self, rate: float, *, scaled: bool = True) -> None:
        super().__init__()
        self.drop_prob = rate
        self.scaled = scaled
        self.windows: Side = 1  # per image, in the current batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty(x.shape[0] // self.windows, *(1,) * (x.ndim - 1)).bernoulli_(keep)
        kept = kept / keep if self.scaled and keep else kept
        return x * (kept if self.windows == 1 else kept.repeat_interleave(self.windows, dim=0))


def draw_per_image(block: nn.Module) -> None:
    """Replace every `DropPath` of timm in `block` by `ImageDropPath`."""
    for parent in [*block.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                setattr(parent, name, ImageDropPath(child.drop_prob, scaled=child.scale_by_keep))


def run_windows(block: nn.Module, x: Tensor, windows: Side, **named: Any) -> Tensor:
    """Run a block on windows; stochastic depth is the same when checkpointing recomputes it."""
    for module in block.modules():
        if isinstance(module, ImageDropPath):
            module.windows = windows
    return block(x, **named)


def run_merged(block: nn.Module, x: Tensor, layout: Layout, **named: Any) -> Tensor:
    """Run a global block on windows that keep their own tokens before the patches."""
    return layout.part(block(layout.merge(x), **named))
