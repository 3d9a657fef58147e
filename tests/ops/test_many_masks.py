"""As many masks as a results file has: pycocotools counts in 8 bits where NumPy 2 does not let it."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from vitdense.ops.masks import (
    areas_of_runs,
    box_of,
    boxes_of_runs,
    fault_of,
    masks_of_runs,
    readable_parts,
    runs_of,
    runs_of_masks,
    unpack_runs,
)


@pytest.mark.parametrize('count', [0, 1, 255, 256, 300, 70_000])
def test_areas_and_boxes_of_any_number_of_masks(count):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(7, 12, 9, generator=generator) < 0.3
    runs = (runs_of_masks(masks) * (count // 7 + 1))[:count]
    areas, boxes = areas_of_runs(runs), boxes_of_runs(runs)
    assert areas.dtype == boxes.dtype == np.float64 and areas.shape == (count,) and boxes.shape == (count, 4)
    assert areas.tolist() == (masks.sum((1, 2)).tolist() * (count // 7 + 1))[:count]
    assert boxes[:7].tolist() == [coco.toBbox(run).tolist() for run in runs[:7]]


@pytest.mark.parametrize('count', [0, 300])
def test_masks_survive_their_run_lengths(count):
    masks = torch.rand(count, 6, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    runs = runs_of_masks(masks) if count else []
    assert torch.equal(masks_of_runs(runs, (6, 5)), masks)


def test_points_in_lists_of_their_own_are_a_polygon():
    flat = [[1, 1, 9, 1, 9, 8, 1, 8]]
    points = [[1, 1], [9, 1], [9, 8], [1, 8]]
    assert readable_parts(points) == readable_parts([points]) == (flat, [])
    assert readable_parts(flat) == (flat, []) and readable_parts([[1, 2], [3, 4]])[0] == [[1, 2], [3, 4]]
    assert readable_parts(points[:3]) == readable_parts([points[:3]]) == ([flat[0][:6]], [])
    for other in (
        [[[1, 2], [3, 4]]],
        [[1, [2]], [3, 4], [5, 6]],
        [[[1, 1], [9, 1], 5]],
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    ):
        assert readable_parts(other) == (other, [])  # no points: left as it is
    assert readable_parts([[1, 1], [9, 1], *flat])[0] == flat


@pytest.mark.parametrize(
    'ring', [[3, 4], [3, 4, 15, 16], [1, 2, 3, 4, 5], [0, 0, 9, 0, 9, float('nan')], [], 5, ['a'] * 6]
)
def test_a_polygon_that_is_none_costs_only_itself(ring):
    good = [1, 1, 10, 1, 10, 10, 1, 10]
    for segmentation in ([good, ring], [ring, good]):
        parts, left_out = readable_parts(segmentation)
        assert parts == [good] and len(left_out) == 1
    assert readable_parts([ring])[0] == [ring] and fault_of([ring], (20, 30))


def test_polygons_of_two_points_have_no_pixel_in_pycocotools_either():
    good = [1, 1, 10, 1, 10, 10, 1, 10]
    for ring in ([3, 4], [3, 4, 15, 16], [15, 2, 15, 18]):
        theirs = coco.merge(coco.frPyObjects([good, ring], 20, 30))
        assert theirs == runs_of(readable_parts([good, ring])[0], (20, 30))


def test_run_lengths_in_other_spellings_are_the_same():
    runs = dict(size=[4, 5], counts=[3, 7, 10])
    expected = runs_of(runs, (4, 5))
    for other in (dict(size=[4.0, '5'], counts=[3, 7, 10]), dict(size=(4, 5), counts=[3.0, '7', 10])):
        assert runs_of(other, (4, 5)) == runs_of(other, None) == expected
    packed = dict(size=[4, 5], counts=expected['counts'].decode())
    assert runs_of(packed, None) == expected and box_of(packed, None) == coco.toBbox(expected).tolist()
    assert box_of([[1, 2.5, 9, 1, 9, 8]], (20, 30)) == [1, 1, 8, 7]


@pytest.mark.parametrize(
    ('segmentation', 'reason'),
    [
        ([[10**400, 0, 9, 0, 9, 9]], 'too large'),
        (dict(size=[4, 5], counts=[10**400]), 'beyond'),
        (dict(size=[4, 5], counts=[0, 10**400]), 'beyond'),
        (dict(size=[4, 5], counts=[-(10**400), 5]), 'negative'),
        (dict(size=[4, 5], counts=[-5, 25]), 'negative'),
        (dict(size=[4, 5], counts=[]), 'no run lengths'),
        (dict(size=[4, 5], counts=[3, 16]), 'add up to 19 of 20'),
        (dict(size=[4, 5], counts=[3.5, 16.5]), 'whole numbers'),
        (dict(size='45', counts=[20]), 'run lengths of size'),
        (dict(size=[4, 5], counts=b''), 'no run lengths'),
        ([[1, 1, 9, 1, 9, 8], 5], 'a list of its own'),
        ([[1, 1, 9, 1, 9, 8, 4]], 'has 7 numbers'),
        ([[0, 0, 9, 0, 9, 100_001]], 'up to 100001'),
        ('mask', 'neither a list of polygons nor run lengths'),
        ([], 'it is empty'),
        (dict(size=[10**400, 5], counts=[20]), 'run lengths of size'),
        (dict(size=[4], counts=[4]), 'run lengths of size'),
        (dict(counts=[4]), 'run lengths of size'),
    ],
)
def test_numbers_that_cannot_be_are_named(segmentation, reason):
    assert reason in fault_of(segmentation, (4, 5)) and reason in fault_of(segmentation, None)
    with pytest.raises(ValueError, match=reason):
        runs_of(segmentation, (4, 5))


def test_masks_of_images_beyond_32_bits_are_refused():
    runs = dict(size=[100_000, 100_000], counts=[10**10])
    assert 'more pixels than masks can have' in fault_of(runs, (100_000, 100_000))
    assert 'run lengths of size' in fault_of(runs, None)
    assert 'size of its image' in str(pytest.raises(ValueError, runs_of, [[0, 0, 9, 0, 9, 9]], None).value)


def test_what_lies_on_a_bound_is_still_right(monkeypatch):
    pixels = 2**31 - 1
    triangle = [1, 1.5, 9, 1, 9, 8]
    assert fault_of([triangle], (1, pixels)) is None and 'more pixels' in fault_of([triangle], (2, pixels))
    assert fault_of([[0, 0, 100_000, 0, 9, 9]], (4, 5)) is None
    assert fault_of(dict(size=[1, pixels], counts=[pixels]), None) is None
    assert fault_of(dict(size=[4, 5], counts=[0, 20]), (4, 5)) is None
    monkeypatch.setattr('vitdense.ops.masks.MAX_POINTS', 6)
    assert fault_of([triangle], (4, 5)) is None and 'has 8 numbers' in fault_of([[*triangle, 4, 4]], (4, 5))


def packed(number: int) -> bytes:
    """One run length as pycocotools packs it: 5 bits in each character from the lowest on, 32 while more follow."""
    digits = []
    while not digits or number or digits[-1] & 16:
        digits.append(number & 31)
        number >>= 5
    return bytes(48 + digit + 32 * (location + 1 < len(digits)) for location, digit in enumerate(digits))


@pytest.mark.parametrize('seed', range(4))
def test_packed_run_lengths_are_those_of_the_mask(seed):
    """Lengths from 1 to thousands: differences to the one two before have either sign and one to four characters."""
    generator = np.random.default_rng(seed)
    lengths = (10 ** generator.uniform(0, 4, 40)).astype(int).tolist()
    for wanted in (lengths, [0, *lengths]):
        run = coco.frPyObjects(dict(size=[1, sum(wanted)], counts=wanted), 1, sum(wanted))
        assert unpack_runs(run['counts']).tolist() == wanted


def test_what_is_no_packed_run_length_is_refused():
    assert (
        unpack_runs(b'') is unpack_runs(b'/1') is unpack_runs(b'1/') is unpack_runs(b'p1') is unpack_runs(b'1p') is None
    )
    assert unpack_runs(b'1P') is unpack_runs(b'Q') is unpack_runs(b'1o') is None  # more should follow
    assert unpack_runs(b'0').tolist() == [0] and unpack_runs(b'o0').tolist() == [31]
    assert packed(2**30) == b'PPPPPP1' and unpack_runs(packed(2**30)).tolist() == [2**30]
    assert unpack_runs(b'PPPPPPP1') is unpack_runs(b'1PPPPPPP1') is None  # 40 bits
