"""Properties of boxes, masks, run lengths, windows and resampling for any sizes and numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch.nn import functional
from torchvision.ops import box_iou, generalized_box_iou

from tests.properties.settings import few, generator, seeds
from vitdense.ops import boxes as box_ops
from vitdense.ops import masks as mask_ops
from vitdense.ops.padding import rectangles, resize, zero_padding
from vitdense.ops.resample import apply_separable, bilinear_weights, conv3x3_of_resized, pooling_weights
from vitdense.test_time.sliding_window import Tiler

coordinate = st.floats(-1e4, 1e4, width=32)
extent = st.floats(0, 1e4, width=32)
corners = st.tuples(coordinate, coordinate, extent, extent).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
some_boxes = st.lists(corners, min_size=1, max_size=5).map(lambda rows: torch.tensor(rows, dtype=torch.float32))
side = st.integers(1, 40)
sizes = st.tuples(side, side)


@few
@given(some_boxes, some_boxes)
def test_overlaps_are_symmetric_bounded_and_those_of_torchvision(mine, theirs):
    overlaps, general = (f(mine[:, None], theirs[None]) for f in (box_ops.iou, box_ops.generalized_iou))
    assert overlaps.isfinite().all() and general.isfinite().all()
    assert overlaps.min() >= 0 and overlaps.max() <= 1 + 1e-5 and general.min() >= -1 - 1e-5
    assert (general <= overlaps + 1e-5).all()
    torch.testing.assert_close(overlaps, box_ops.iou(theirs[:, None], mine[None]).mT)
    large = ((mine[:, 2:] - mine[:, :2]).amin(1) > 1e-2)[:, None] & ((theirs[:, 2:] - theirs[:, :2]).amin(1) > 1e-2)
    for ours, reference in ((overlaps, box_iou(mine, theirs)), (general, generalized_box_iou(mine, theirs))):
        torch.testing.assert_close(ours[large], reference[large], atol=1e-4, rtol=1e-3)


@few
@given(some_boxes)
def test_layouts_of_boxes_are_converted_back(boxes):
    torch.testing.assert_close(box_ops.to_xyxy(box_ops.to_cxcywh(boxes)), boxes, atol=2e-3, rtol=1e-5)


@few
@given(some_boxes, sizes, sizes)
def test_boxes_of_the_original_image_lie_in_it(boxes, size, original):
    limits = torch.tensor([original], dtype=torch.float32)
    actual = box_ops.to_original(boxes[None], torch.tensor([size], dtype=torch.float32), limits)[0]
    assert (actual >= 0).all() and (actual[:, ::2] <= original[1]).all() and (actual[:, 1::2] <= original[0]).all()
    whole = torch.tensor([[[0.0, 0.0, size[1], size[0]]]])
    actual = box_ops.to_original(whole, torch.tensor([size], dtype=torch.float32), limits)[0, 0]
    torch.testing.assert_close(actual, torch.tensor([0.0, 0.0, original[1], original[0]]), atol=1e-4, rtol=1e-6)


@few
@given(st.integers(0, 4), sizes, seeds, st.floats(0, 1))
def test_masks_are_read_back_from_their_run_lengths(count, size, seed, share):
    masks = torch.rand(count, *size, generator=generator(seed)) < share
    runs = mask_ops.runs_of_masks(masks)
    assert torch.equal(mask_ops.masks_of_runs(runs, size), masks)
    assert mask_ops.areas_of_runs(runs).tolist() == masks.sum((1, 2)).tolist()
    actual = torch.from_numpy(mask_ops.boxes_of_runs(runs)).float()
    actual[:, 2:] += actual[:, :2]
    full = masks.any(2).any(1)
    assert torch.equal(mask_ops.boxes_of_masks(masks)[full].float(), actual[full])
    for row, mask in zip(runs, masks, strict=True):
        lengths = mask_ops.unpack_runs(row['counts']).tolist()
        flat = [value for index, length in enumerate(lengths) for value in [index % 2] * length]
        assert flat == mask.T.flatten().int().tolist()  # columns first
        loose = {'size': list(size), 'counts': lengths}
        assert mask_ops.fault_of(loose, size) is None
        assert mask_ops.runs_of(loose, size)['counts'] == row['counts']


@few
@given(st.lists(st.integers(44, 116), min_size=1, max_size=12).map(bytes))
def test_any_bytes_are_run_lengths_or_refused(packed):
    runs = mask_ops.unpack_runs(packed)
    if runs is None:
        assert mask_ops.fault_of({'size': [4, 4], 'counts': packed}, None) == 'counts are no run lengths'
    elif (runs >= 0).all() and 0 < runs.sum() < 10**6:
        size = [1, int(runs.sum())]
        assert mask_ops.fault_of({'size': size, 'counts': packed}, None) is None
        assert int(coco.area({'size': size, 'counts': packed})) == runs[1::2].sum()


@few
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**400), 10**400) | st.none(), max_size=9)
)
def test_any_polygon_is_drawn_or_refused(ring):
    if mask_ops.fault_of([ring], (8, 8)) is None:
        assert mask_ops.masks_of_runs([mask_ops.runs_of([ring], (8, 8))], (8, 8)).shape == (1, 8, 8)
    else:
        with pytest.raises(ValueError):
            mask_ops.runs_of([ring], (8, 8))


@few
@given(sizes, sizes, sizes, st.integers(1, 8), st.sampled_from(['pixels', 'logits']), st.booleans())
def test_windows_cover_every_pixel_and_stay_inside(image, window, stride, divisor, accumulate, even):
    stride = tuple(min(step, length) for step, length in zip(stride, window, strict=True))
    image = tuple(-(-length // divisor) * divisor for length in image)
    assume(accumulate == 'pixels' or min(stride) >= divisor)
    windows = Tiler(window, stride, divisor=divisor, accumulate=accumulate, even=even).windows(image)
    assert windows.counts(image).min() >= 1
    for starts, length, whole in zip((windows.tops, windows.lefts), windows.size, image, strict=True):
        assert starts[0] == 0 and starts[-1] + length == whole and len(set(starts)) == len(starts)


@few
@given(st.integers(1, 3), sizes, sizes, seeds)
def test_resizing_by_matrices_is_that_of_torch(channels, size, target, seed):
    x = torch.randn(2, channels, *size, generator=generator(seed))
    weights = [
        bilinear_weights(new, old, used_out=torch.tensor([new, new]), used_in=torch.tensor([old, old]), ratio=old / new)
        for old, new in zip(size, target, strict=True)
    ]
    wanted = functional.interpolate(x, size=target, mode='bilinear', align_corners=False)
    torch.testing.assert_close(apply_separable(weights[0], x, weights[1]), wanted, atol=1e-5, rtol=1e-4)
    for matrix in weights:
        torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:2]), atol=1e-5, rtol=0)


@few
@given(sizes, seeds, st.data())
def test_padding_changes_no_cell_of_an_image(size, seed, data):
    extents = torch.tensor([[data.draw(st.integers(1, length)) for length in size] for _ in range(2)])
    target = tuple(data.draw(st.integers(length, 2 * length)) for length in size)
    x = torch.randn(2, 2, *size, generator=generator(seed))
    noisy = torch.where(rectangles(extents, size)[:, None], x, 1e6)
    for row, (height, width) in enumerate(extents.tolist()):
        first, second = (resize(zero_padding(each, extents), target, extents)[row] for each in (x, noisy))
        torch.testing.assert_close(first, second)
        bins = [min(4, height), min(4, width)]
        rows, columns = (pooling_weights(bins[axis], size[axis], used_in=extents[:, axis]) for axis in (0, 1))
        pooled = apply_separable(rows, x, columns)[row]
        wanted = functional.adaptive_avg_pool2d(x[row, :, :height, :width], bins)
        torch.testing.assert_close(pooled, wanted, atol=1e-5, rtol=1e-4)


@few
@given(st.tuples(st.integers(2, 12), st.integers(2, 12)), st.integers(1, 4), seeds)
def test_a_convolution_changes_places_with_a_resize(size, factor, seed):
    x = torch.randn(1, 3, *size, generator=generator(seed))
    weight = torch.randn(2, 3, 3, 3, generator=generator(seed))
    target = (size[0] * factor, size[1] * factor)
    wanted = functional.conv2d(functional.interpolate(x, size=target, mode='bilinear'), weight, padding=1)
    torch.testing.assert_close(conv3x3_of_resized(x, weight, target), wanted, atol=1e-4, rtol=1e-4)


@few
@given(sizes, seeds, st.integers(1, 20))
def test_values_at_points_are_those_of_grid_sample(size, seed, count):
    values = torch.randn(2, *size, generator=generator(seed))
    points = torch.rand(2, count, 2, generator=generator(seed)) * torch.tensor([size[1], size[0]])
    grid = points / torch.tensor([size[1], size[0]]) * 2 - 1
    wanted = functional.grid_sample(values[:, None], grid[:, None], align_corners=False)[:, 0, 0]
    actual = mask_ops.sample_points(values, points, torch.tensor(size))
    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
    assert actual.shape == (2, count) and math.isfinite(np.abs(actual.numpy()).max())
