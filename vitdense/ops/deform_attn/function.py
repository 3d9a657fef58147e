"""Multi-scale deformable attention: a weighted sum of a few samples per level for every query.

Equation 3 of Deformable DETR (Zhu et al. 2021) after the linear layers. The maps of all levels are concatenated
in `value`; samples are bilinear, with cell centres at half integers (`align_corners=False`) and zeros outside a map.

There are three implementations: `embedding_bag` (CPU, cpu.py), `triton` (CUDA, cuda.py) and `grid_sample` (any device,
and for export). The first two are custom operators, which `torch.compile` does not trace: compiling `grid_sample` on a
CPU takes half a minute and makes it slower.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.ops.deform_attn import cpu as deform_attn_cpu

Route = Literal['grid_sample', 'embedding_bag', 'triton']
Grids = Sequence[tuple[int, int]]
MAX_OFFSET = 1 << 31  # the Triton kernels count the numbers of an image's table in int32

logger = logging.getLogger('vitdense')


def deform_attn(
    value: Tensor, grids: Grids, locations: Tensor, weights: Tensor, *, path: Route | None = None
) -> Tensor:
    """Return (B, Q, heads * C): for every query and head the weighted sum of its samples.

    `value` (B, S, heads, C) holds the maps of all levels, row by row, fine to coarse or in any other order that `grids`
    [(h, w), ...] names; S is the sum of h * w. `locations` (B, Q, heads, levels, points, 2) are (x, y) in [0, 1] of
    the map of their level; samples outside are zero. `weights` (B, Q, heads, levels, points) are used as given.

    Positions and sums are computed in float32 at least; the output has the type of `value`. `path` forces an
    implementation (for tests and timing); outputs and gradients of all agree up to rounding. Raises ValueError for
    shapes that do not fit together.
    """
    grids = tuple((height, width) for height, width in grids)
    _check_shapes(value, grids, locations, weights)
    path = path or route_of(value)
    dtype = torch.promote_types(value.dtype, torch.float32)
    locations, weights = locations.to(dtype), weights.to(dtype)
    if path == 'grid_sample':
        return sample_grids(value.to(dtype), grids, locations, weights).to(value.dtype)
    sizes = [side for grid in grids for side in grid]
    # the kernel converts half precision itself; embedding_bag would sum in it
    table = value if path == 'triton' else value.to(dtype)
    return attend(table, sizes, locations, weights, path).to(value.dtype)


def route_of(value: Tensor) -> Route:
    """Return the implementation that `deform_attn` uses for this `value` (B, S, heads, C)."""
    _, cells, heads, channels = value.shape
    tracing = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if tracing or value.device.type not in ('cpu', 'cuda') or cells * heads >= deform_attn_cpu.MAX_ROWS:
        return 'grid_sample'
    if value.device.type == 'cpu' or torch.are_deterministic_algorithms_enabled():
        return 'embedding_bag'  # on CUDA the other two sum gradients in no fixed order
    return 'triton' if triton_works() and cells * heads * channels < MAX_OFFSET else 'grid_sample'


@torch.compiler.assume_constant_result
def triton_works() -> bool:
    """Return whether Triton is installed and can build a kernel for the current CUDA device (it needs a C compiler)."""
    return _try_triton()


@cache
def _try_triton() -> bool:
    if not (torch.cuda.is_available() and find_spec('triton')):
        return False
    value, sample_points = torch.zeros(1, 1, 1, 1, device='cuda'), torch.zeros(1, 1, 1, 1, 1, 2, device='cuda')
    try:
        _kernels('triton').attend(value, ((1, 1),), sample_points, sample_points[..., 0])
    except Exception as error:  # a missing compiler, header, driver or folder each raise another type
        logger.warning('deformable attention runs without Triton, slower, because Triton fails here: %s', error)
        return False
    return True


@torch.library.custom_op('vitdense::deform_attn', mutates_args=())
def attend(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, path: str) -> Tensor:
    """Operator of `deform_attn` for the paths `embedding_bag` and `triton`; `sizes` are h, w, h, w, ... by level."""
    with torch.autocast(value.device.type, enabled=False):
        return _kernels(path).attend(value, _pairs(sizes), locations, weights)


@torch.library.custom_op('vitdense::deform_attn_backward', mutates_args=())
def attend_backward(
    grad_output: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `value`, `locations` and `weights`."""
    with torch.autocast(value.device.type, enabled=False):
        return _kernels(path).attend_backward(grad_output, value, _pairs(sizes), locations, weights)


@attend.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, path: str) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@attend_backward.register_fake
def _(
    grad_output: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (value, locations, weights)
    )


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.sizes, locations, weights, ctx.path = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    gradients = attend_backward(grad_output, value, ctx.sizes, locations, weights, ctx.path)
    return gradients[0], None, gradients[1], gradients[2], None


attend.register_autograd(_backward, setup_context=_setup_context)


def _kernels(path: str) -> ModuleType:
    if path == 'embedding_bag':
        return deform_attn_cpu
    from vitdense.ops.deform_attn import cuda as deform_attn_cuda

    return deform_attn_cuda


def _pairs(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(sizes[::2], sizes[1::2], strict=True))


def sample_grids(value: Tensor, grids: Grids, locations: Tensor, weights: Tensor) -> Tensor:
    """`deform_attn` by one `grid_sample` per level, on any device; the same arguments and output."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B, S, heads, C) -> (B*heads, C, S)
    sample_points = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # -> (B*heads, Q, levels, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None]  # -> (B*heads, 1, Q, levels, points)
    levels = maps.split([height * width for height, width in grids], dim=2)
    sums = maps.new_zeros(())
    for level, (values, grid) in enumerate(zip(levels, grids, strict=True)):
        samples = functional.grid_sample(
            values.unflatten(2, grid),
            sample_points[:, :, level],
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )  # (B*heads, C, Q, points)
        sums = sums + (samples * shares[..., level, :]).sum(-1)
    return sums.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)  # (B*heads, C, Q) -> (B, Q, heads*C)


def _check_shapes(value: Tensor, grids: Grids, locations: Tensor, weights: Tensor) -> None:
    cells = sum(height * width for height, width in grids)
    if not grids or min(min(grid) for grid in grids) < 1 or value.ndim != 4 or value.shape[1] != cells:
        raise ValueError(
            f'value {tuple(value.shape)} is not (B, {cells}, heads, C), the cells of the levels {list(grids)}'
        )
    expected = (value.shape[0], locations.shape[1], value.shape[2], len(grids), *locations.shape[4:5], 2)
    if locations.ndim != 6 or tuple(locations.shape) != expected:
        raise ValueError(
            f'locations {tuple(locations.shape)} are not (B, Q, heads, levels, points, 2) with batch {value.shape[0]}, '
            f'{value.shape[2]} heads and {len(grids)} levels'
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f'weights {tuple(weights.shape)} do not fit locations {tuple(locations.shape)}')
