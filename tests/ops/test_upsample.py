"""Full-resolution labels against interpolate, crop, interpolate, argmax."""

import pytest
import torch
from torch.nn import functional

from vitdense.errors import NumericsError
from vitdense.ops import upsample
from vitdense.ops.upsample import axis_taps, cut, find_candidates, full_resolution_labels, prune_labels, stream_labels

GEOMETRIES = {  # logits, plane, crop, out
    'one step, whole ratio': ((8, 8), (64, 64), (64, 64), (64, 64)),
    'patch 14': ((9, 11), (126, 154), (126, 154), (126, 154)),
    'padded and enlarged': ((12, 9), (96, 72), (90, 65), (131, 97)),
    'padded and shrunk': ((12, 9), (96, 72), (90, 65), (40, 31)),
    'shrunk below the grid': ((32, 40), (128, 160), (121, 160), (11, 17)),
    'grid finer than the plane': ((40, 40), (30, 25), (30, 20), (50, 33)),
    'grid is the plane': ((40, 50), (40, 50), (37, 44), (80, 95)),
    'nothing to do': ((40, 50), (40, 50), (37, 44), (37, 44)),
    'one cell': ((1, 1), (16, 16), (9, 16), (20, 30)),
    'one row': ((1, 13), (14, 182), (14, 182), (3, 500)),
    'one pixel': ((3, 3), (9, 9), (1, 1), (1, 1)),
}


def _random(classes, size):
    return torch.randn(classes, *size)


def _smooth(classes, size):
    coarse = [max(side // 4, 1) for side in size]
    return functional.interpolate(torch.randn(1, classes, *coarse), size, mode='bicubic')[0]


def _sharp(classes, size):
    regions = _smooth(classes, size).argmax(0)
    return functional.one_hot(regions, classes).permute(2, 0, 1) * 9.0 + torch.randn(classes, *size)


def _naive(logits, label_map, crop, out):
    full = functional.interpolate(logits[None], label_map, mode='bilinear', align_corners=False)
    full = functional.interpolate(full[..., : crop[0], : crop[1]], out, mode='bilinear', align_corners=False)
    return full[0]


def _assert_same(labels, full):
    """Labels agree with the argmax, except where the two best logits are equal up to rounding."""
    wrong = labels.long() != full.argmax(0)
    chosen = full.gather(0, labels.long()[None])[0]
    gap = (full.amax(0) - chosen)[wrong]
    assert (gap <= 1e-5 * full.abs().amax()).all()
    assert wrong.sum() <= 1 + 1e-3 * wrong.numel()  # near ties are rare: this is no way out for a wrong geometry


@pytest.mark.parametrize('make', [_random, _smooth, _sharp])
@pytest.mark.parametrize('classes', [2, 19, 150])
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_equals_the_naive_way(make, classes, geometry):
    size, label_map, crop, out = geometry
    logits = make(classes, size)
    labels = full_resolution_labels(logits, input_size=label_map, crop=crop, out=out)
    assert labels.shape == out and labels.dtype == torch.uint8 and labels.is_contiguous()
    _assert_same(labels, _naive(logits, label_map, crop, out))


@pytest.mark.parametrize('make', [_random, _smooth, _sharp])
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize('pixels', [64, 10**6])
def test_both_ways_agree_in_any_chunks(monkeypatch, make, geometry, pixels):
    monkeypatch.setattr(upsample, 'TILE_PIXELS', {'cpu': pixels})
    monkeypatch.setattr(upsample, 'BAND_PIXELS', {'cpu': pixels})
    size, label_map, crop, out = geometry
    logits = make(12, size)
    rows, columns = (axis_taps(*axis) for axis in zip(size, label_map, crop, out, strict=True))
    tiles = [cut(taps, logits.device) for taps in (rows, columns)]
    pruned = prune_labels(logits, *tiles, find_candidates(logits, *tiles))[: out[0], : out[1]]
    full = _naive(logits, label_map, crop, out)
    _assert_same(pruned, full)
    _assert_same(stream_labels(logits, rows, columns), full)


@pytest.mark.parametrize('size', [4, 8, 32, 200])
def test_candidates_always_hold_the_winner(size):
    logits = _smooth(20, (16, 16))
    tiles = cut(axis_taps(16, 120, 110, 110), logits.device, size)
    candidates = find_candidates(logits, tiles, tiles)
    winners = _naive(logits, (120, 120), (110, 110), (110, 110)).argmax(0)
    for y, x in torch.cartesian_prod(torch.arange(110), torch.arange(110))[::7].tolist():
        assert candidates[winners[y, x], y // size, x // size]


@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_taps_are_weights_of_existing_cells(geometry):
    for cells, label_map, crop, out in zip(*geometry, strict=True):
        taps = axis_taps(cells, label_map, crop, out)
        assert taps.cells.shape == taps.weights.shape and len(taps.cells) == out
        assert taps.cells.min() >= 0 and taps.cells.max() < cells
        assert (taps.weights >= 0).all() and torch.allclose(taps.weights.sum(1), torch.ones(out))


def test_ties_go_to_the_lowest_class():
    logits = torch.zeros(5, 6, 6)
    logits[2] = logits[4] = 1
    labels = full_resolution_labels(logits, input_size=(48, 48), crop=(48, 48), out=(60, 60))
    assert (labels == 2).all()
    logits = torch.zeros(300, 2, 2)
    assert not full_resolution_labels(logits, input_size=(8, 8), crop=(8, 8), out=(8, 8)).any()


def test_more_than_255_classes():
    logits = _sharp(300, (16, 16))
    labels = full_resolution_labels(logits, input_size=(64, 64), crop=(64, 60), out=(64, 60))
    assert labels.dtype == torch.int16 and labels.max() > 255
    _assert_same(labels, _naive(logits, (64, 64), (64, 60), (64, 60)))


def test_low_precision_and_gradients_do_not_matter():
    logits = _sharp(10, (8, 8)).bfloat16().requires_grad_()
    labels = full_resolution_labels(logits, input_size=(64, 64), crop=(64, 64), out=(64, 64))
    _assert_same(labels, _naive(logits.detach().float(), (64, 64), (64, 64), (64, 64)))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_non_finite_logits_are_refused(value):
    logits = torch.zeros(3, 4, 4)
    logits[1, 2, 3] = value
    with pytest.raises(NumericsError, match='2.1% of the logits'):
        full_resolution_labels(logits, input_size=(8, 8), crop=(8, 8), out=(8, 8))


def test_huge_finite_logits_are_accepted():
    labels = full_resolution_labels(torch.full((3, 4, 4), 3e38), input_size=(8, 8), crop=(8, 8), out=(8, 8))
    assert not labels.any()


def test_a_crop_cannot_leave_the_plane():
    with pytest.raises(ValueError, match='cannot crop'):
        full_resolution_labels(torch.zeros(3, 4, 4), input_size=(8, 8), crop=(9, 8), out=(8, 8))
    with pytest.raises(ValueError, match='cannot crop'):
        full_resolution_labels(torch.zeros(3, 4, 4), input_size=(8, 8), crop=(8, 8), out=(0, 8))
