"""Deformable attention as Triton kernels, forward and backward, for CUDA devices.

A program handles a few queries of one head of one image and loops over levels and points; the channels of a head are
contiguous in memory, so every corner is one coalesced read. The backward pass sums the gradient of `value` by atomics
in float32: its last bits depend on the order. This file can be imported only where triton is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

TILE = 512  # numbers of a tile (queries x channels) in registers: four for each thread of four warps
MANY_PROGRAMS = 1024  # with fewer than this, tiles hold fewer queries: the device has more than 100 processors


@triton.jit
def _read_corner(table, row, column, height, width, stride, channels, mask):
    """Return the channels of a cell (zero outside the map), their offsets, their mask, and whether it is outside."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)  # NaN is neither
    offsets = (row * width + column).to(tl.int32)[:, None] * stride + channels[None, :]
    mask = mask & inside[:, None]
    return tl.load(table + offsets, mask=mask, other=0.0), offsets, mask, outside


@triton.jit
def _attend(
    value, levels, locations, weights, output,
    num_queries, num_cells, num_blocks,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    image_head = tl.program_id(0) // num_blocks
    image, head = (image_head // HEADS).to(tl.int64), image_head % HEADS
    queries = (tl.program_id(0) % num_blocks) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    channels = tl.arange(0, BLOCK_CHANNELS)
    real = queries < num_queries
    mask = real[:, None] & (channels < CHANNELS)[None, :]
    output_rows = (image * num_queries + queries) * HEADS + head
    table = value + (image * num_cells * HEADS + head) * CHANNELS
    sums = tl.zeros((BLOCK_QUERIES, BLOCK_CHANNELS), dtype=locations.dtype.element_ty)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        level_start = table + tl.load(levels + 3 * level + 2) * HEADS * CHANNELS
        for point in range(POINTS):
            samples = (output_rows * LEVELS + level) * POINTS + point
            x = tl.load(locations + 2 * samples, mask=real, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * samples + 1, mask=real, other=0.0) * height - 0.5
            weight = tl.load(weights + samples, mask=real, other=0.0)
            left, top = tl.floor(x), tl.floor(y)
            for corner in tl.static_range(4):
                right_side, lower_side = corner % 2, corner // 2
                cell, _, _, outside = _read_corner(
                    level_start, top + lower_side, left + right_side, height, width, HEADS * CHANNELS, channels, mask
                )
                share_x = x - left if right_side else 1.0 - (x - left)
                share_y = y - top if lower_side else 1.0 - (y - top)
                share = tl.where(outside, 0.0, share_x * share_y * weight)
                sums += share[:, None] * cell.to(sums.dtype)
    out = output + output_rows[:, None] * CHANNELS + channels[None, :]
    tl.store(out, sums.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _attend_backward(
    grad_output, value, levels, locations, weights, grad_value, grad_locations, grad_weights,
    num_queries, num_cells, num_blocks,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    image_head = tl.program_id(0) // num_blocks
    image, head = (image_head // HEADS).to(tl.int64), image_head % HEADS
    queries = (tl.program_id(0) % num_blocks) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    channels = tl.arange(0, BLOCK_CHANNELS)
    real = queries < num_queries
    mask = real[:, None] & (channels < CHANNELS)[None, :]
    output_rows = (image * num_queries + queries) * HEADS + head
    first = (image * num_cells * HEADS + head) * CHANNELS
    gradients = tl.load(grad_output + output_rows[:, None] * CHANNELS + channels[None, :], mask=mask, other=0.0)
    gradients = gradients.to(locations.dtype.element_ty)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = first + tl.load(levels + 3 * level + 2) * HEADS * CHANNELS
        for point in range(POINTS):
            samples = (output_rows * LEVELS + level) * POINTS + point
            x = tl.load(locations + 2 * samples, mask=real, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * samples + 1, mask=real, other=0.0) * height - 0.5
            weight = tl.load(weights + samples, mask=real, other=0.0)
            left, top = tl.floor(x), tl.floor(y)
            along_x = tl.zeros((BLOCK_QUERIES,), dtype=gradients.dtype)
            along_y = tl.zeros((BLOCK_QUERIES,), dtype=gradients.dtype)
            along_weight = tl.zeros((BLOCK_QUERIES,), dtype=gradients.dtype)
            for corner in tl.static_range(4):
                right_side, lower_side = corner % 2, corner // 2
                cell, offsets, inside, outside = _read_corner(
                    value + start, top + lower_side, left + right_side, height, width, HEADS * CHANNELS, channels, mask
                )
                share_x = x - left if right_side else 1.0 - (x - left)
                share_y = y - top if lower_side else 1.0 - (y - top)
                grad_share = tl.sum(gradients * cell.to(gradients.dtype), axis=1)  # zero outside the map
                along_weight += grad_share * share_x * share_y
                along_x += grad_share * share_y * (2 * right_side - 1)
                along_y += grad_share * share_x * (2 * lower_side - 1)
                share = tl.where(outside, 0.0, share_x * share_y * weight)
                tl.atomic_add(grad_value + start + offsets, share[:, None] * gradients, mask=inside, sem='relaxed')
            tl.store(grad_locations + 2 * samples, along_x * weight * width, mask=real)
            tl.store(grad_locations + 2 * samples + 1, along_y * weight * height, mask=real)
            tl.store(grad_weights + samples, along_weight, mask=real)


class Launch(NamedTuple):
    """Number of programs of a kernel launch, and its scalar arguments."""

    programs: tuple[int]
    numbers: tuple[int, int, int]  # queries, cells, blocks of queries
    constants: dict[str, int]


def attend(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, heads * C) as `ops.deform_attn.deform_attn` does.

    `value` may have any floating type, which the output has too; locations and weights are float32 or float64.
    """
    output = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    if not weights.numel():
        return output.zero_()
    launch = _launch_of(value, locations)
    inputs = value.contiguous(), level_table(tuple(grids), value.device), locations.contiguous(), weights.contiguous()
    with torch.cuda.device_of(value):
        _attend[launch.programs](*inputs, output, *launch.numbers, **launch.constants)
    return output


def attend_backward(
    grad_output: Tensor, value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `value`, `locations` and `weights`; `grad_output` is (B, Q, heads * C)."""
    to_value = torch.zeros(value.shape, dtype=locations.dtype, device=value.device)
    to_locations, to_weights = (
        torch.empty(like.shape, dtype=like.dtype, device=like.device) for like in (locations, weights)
    )
    if weights.numel():
        launch = _launch_of(value, locations)
        table = level_table(tuple(grids), value.device)
        inputs = grad_output.contiguous(), value.contiguous(), table, locations.contiguous(), weights.contiguous()
        with torch.cuda.device_of(value):
            _attend_backward[launch.programs](
                *inputs, to_value, to_locations, to_weights, *launch.numbers, **launch.constants
            )
    return to_value.to(value.dtype), to_locations, to_weights


@lru_cache(maxsize=64)
def level_table(grids: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return (levels, 3) int32: height, width and first cell of each level. It is cached."""
    rows, start = [], 0
    for height, width in grids:
        rows.append((height, width, start))
        start += height * width
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32, device=device)


def _launch_of(value: Tensor, locations: Tensor) -> Launch:
    batch, num_cells, heads, channels = value.shape
    queries, _, levels, points = locations.shape[1:5]
    block_channels = triton.next_power_of_2(channels)
    block_queries = max(TILE // block_channels, 1)
    while block_queries > 1 and batch * heads * triton.cdiv(queries, block_queries) < MANY_PROGRAMS:
        block_queries //= 2
    num_blocks = triton.cdiv(queries, block_queries)
    warps = min(max(triton.next_power_of_2(block_queries * block_channels) // 128, 1), 8)
    shape = dict(HEADS=heads, LEVELS=levels, POINTS=points, CHANNELS=channels)
    blocks = dict(BLOCK_QUERIES=block_queries, BLOCK_CHANNELS=block_channels)
    return Launch(
        (batch * heads * num_blocks,), (queries, num_cells, num_blocks), {**shape, **blocks, 'num_warps': warps}
    )
