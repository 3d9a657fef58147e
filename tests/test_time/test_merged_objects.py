"""Objects cut by the borders of windows, and predicted in several views: counted once, with their whole box."""

import pytest
import torch
from torch import nn

from vitdense.model import DenseModel
from vitdense.tasks.detection import DetectionTask
from vitdense.test_time.merged_objects import fuse_views, join_windows, original_objects, rescaled, unmirrored
from vitdense.test_time.sliding_window import Tiler
from vitdense.test_time.tta import TestTimeAugmentation
from vitdense.types import Instances, Meta, ObjectOutputs, QueryOutputs

SIZE, INPUT_SIZE = (100, 100), (100, 160)
CORNERS = [(0, 0), (0, 60)]  # both see x = 60 ... 100


def instances(*rows, masks=None):
    """Objects of rows (x0, y0, x1, y1, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return Instances(table[:, :4], table[:, 4], table[:, 5].long(), masks)


def joined(left, right, pixels=INPUT_SIZE, corners=CORNERS):
    return join_windows([left, right], corners, SIZE, pixels)


def rows(actual):
    return [
        [*box, round(score, 4), label]
        for box, score, label in zip(actual.boxes.tolist(), actual.scores.tolist(), actual.labels.tolist(), strict=True)
    ]


def test_an_object_cut_by_a_border_gives_way_to_the_whole_box_of_the_neighbour():
    actual = joined(instances((80, 10, 100, 50, 0.9, 1)), instances((20, 10, 70, 50, 0.6, 1)))
    assert rows(actual) == [[80, 10, 130, 50, 0.6, 1]]


def test_an_object_that_both_windows_see_whole_is_kept_once():
    actual = joined(instances((65, 10, 90, 50, 0.6, 1)), instances((6, 10, 30, 50, 0.9, 1)))
    assert rows(actual) == [[66, 10, 90, 50, 0.9, 1]]


def test_an_object_larger_than_the_overlap_is_put_together():
    actual = joined(instances((20, 10, 100, 50, 0.8, 1)), instances((0, 10, 80, 52, 0.7, 1)))
    assert rows(actual) == [[20, 10, 140, 52, 0.8, 1]]


def test_an_object_over_three_windows_is_put_together():
    corners = [(0, 0), (0, 60), (0, 120)]
    pieces = [
        instances((50, 0, 100, 40, 0.8, 2)),
        instances((0, 0, 100, 40, 0.9, 2)),
        instances((0, 0, 50, 40, 0.7, 2)),
    ]
    assert rows(join_windows(pieces, corners, SIZE, (100, 220))) == [[50, 0, 170, 40, 0.9, 2]]


def test_weak_pieces_do_not_stretch_a_box():
    actual = joined(instances((80, 10, 100, 50, 0.9, 1)), instances((0, 0, 100, 60, 0.1, 1)))
    assert rows(actual)[0] == [80, 10, 100, 50, 0.9, 1]


def test_a_sliver_at_a_border_belongs_to_the_whole_box():
    actual = joined(instances((30, 10, 70, 50, 0.9, 1)), instances((0, 20, 5, 30, 0.4, 1)))
    assert rows(actual) == [[30, 10, 70, 50, 0.9, 1]]


@pytest.mark.parametrize(
    ('left', 'right'),
    [
        ((65, 10, 90, 50, 0.9, 1), (5, 10, 30, 50, 0.8, 2)),  # two classes
        ((62, 10, 80, 50, 0.9, 1), (22, 10, 38, 50, 0.8, 1)),  # side by side
        ((62, 10, 99.5, 90, 0.9, 1), (5, 60, 9, 64, 0.8, 1)),  # a whole small one on a piece of a large one
        ((10, 10, 50, 50, 0.9, 1), (60, 10, 90, 50, 0.8, 1)),  # neither is where the other looks
    ],
)
def test_different_objects_stay(left, right):
    assert len(joined(instances(left), instances(right)).boxes) == 2


def test_boxes_of_one_window_are_never_compared_and_the_edge_of_the_image_cuts_nothing():
    actual = join_windows([instances((0, 0, 50, 40, 0.9, 1), (0, 0, 50, 41, 0.8, 1))], [(0, 0)], SIZE, SIZE)
    assert len(actual.boxes) == 2 and actual.scores.tolist() == pytest.approx([0.9, 0.8])


def test_masks_are_put_together_too():
    left, right = torch.zeros(1, 100, 100).bool(), torch.zeros(1, 100, 100).bool()
    left[0, 10:50, 20:], right[0, 10:50, :80] = True, True
    actual = joined(instances((20, 10, 100, 50, 0.8, 1), masks=left), instances((0, 10, 80, 50, 0.7, 1), masks=right))
    expected = torch.zeros(100, 160).bool()
    expected[10:50, 20:140] = True
    assert actual.masks.shape == (1, 100, 160) and torch.equal(actual.masks[0], expected)
    none = torch.zeros(0, 100, 100).bool()
    assert joined(instances(masks=none), instances(masks=none)).masks.shape == (0, 100, 160)


@pytest.mark.parametrize('packed', [False, True])
def test_a_mask_over_four_windows_is_the_union_of_its_pieces(packed):
    whole = torch.zeros(1, 160, 180, dtype=torch.bool)
    whole[0, 30:130, 40:150] = True
    whole[0, 100:, 120:] = False
    corners = [(0, 0), (0, 80), (60, 0), (60, 80)]
    actual = []
    for top, left in corners:
        mask = whole[:, top : top + 100, left : left + 100]
        columns, rows = (mask[0].any(axis).nonzero()[:, 0] for axis in (0, 1))
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        actual.append(Instances(box[None], torch.tensor([0.9]), torch.tensor([1]), mask))
    size = (160, 180) if packed else None
    joined = join_windows(actual, corners, (100, 100), (160, 180), packed_size=size)
    masks = joined.masks.tensor() if packed else joined.masks
    assert joined.boxes.tolist() == [[40, 30, 150, 130]] and torch.equal(masks, whole)


def test_views_are_fused():
    views = [instances((0, 0, 10, 10, 0.8, 1), (50, 50, 60, 60, 0.5, 1)), instances((0, 0, 14, 10, 0.4, 1))]
    actual = fuse_views(views)
    box = torch.tensor([0, 0, (10 * 0.8 + 14 * 0.4) / 1.2, 10])
    assert torch.allclose(actual.boxes[0], box) and actual.boxes[1].tolist() == [50, 50, 60, 60]
    assert actual.scores.tolist() == pytest.approx([0.6, 0.25])
    assert len(fuse_views([instances(), instances()]).boxes) == 0


def test_fusing_equal_views_changes_nothing():
    actual = instances((0, 0, 10, 10, 0.8, 1), (2, 0, 12, 10, 0.7, 1), (0, 0, 10, 10, 0.3, 0))
    assert rows(fuse_views([actual] * 3)) == rows(actual)  # two of one view are never one object


def test_a_mirrored_and_a_larger_view_come_back():
    actual = instances((10, 20, 30, 40, 1, 0))
    assert unmirrored(actual, 100).boxes.tolist() == [[70, 20, 90, 40]]
    assert rescaled(actual, (100, 100), (50, 200)).boxes.tolist() == [[20, 10, 60, 20]]


def test_objects_get_their_original_size():
    masks = torch.zeros(1, 32, 48).bool()
    masks[0, :10, :20] = True
    outputs = ObjectOutputs((instances((0, 0, 20, 10, 1, 0), masks=masks),))
    actual = original_objects(outputs, [Meta(0, size=(30, 40), orig_size=(60, 120))])[0]
    assert actual.boxes.tolist() == [[0, 0, 60, 20]]
    assert actual.masks.shape == (1, 60, 120) and actual.masks[0, :20, :60].all() and actual.masks.sum() == 1200


class Finder(nn.Module):
    """Finds the brightest rectangle of an image, and says that there is one by its brightness."""

    names, divisor, mean, std = ('det',), 8, (0.0,) * 3, (1.0,) * 3

    def forward(self, imgs, valid=None, training_inputs=None):
        height, width = imgs.shape[-2:]
        boxes, logits = [], []
        for img in imgs:
            inside = img[0] > 0.5
            rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
            recorded = len(rows) > 0
            top, bottom = (int(rows[0]), int(rows[-1]) + 1) if recorded else (0, 1)
            left, right = (int(columns[0]), int(columns[-1]) + 1) if recorded else (0, 1)
            box = [(left + right) / 2 / width, (top + bottom) / 2 / height]
            boxes.append([[*box, (right - left) / width, (bottom - top) / height]])
            logits.append([[3.0 if recorded else -9.0, -9.0]])
        sizes = torch.tensor([[height, width]] * len(imgs)).float()
        return {'det': QueryOutputs(torch.tensor(logits), boxes=torch.tensor(boxes), sizes=sizes)}


@pytest.mark.parametrize('augmented', [False, True])
@pytest.mark.parametrize('tiled', [None, 'pixels', 'labels'])
def test_the_model_finds_one_object_in_windows_and_views(tiled, augmented):
    tiler = tiled and Tiler(48, 32, accumulate=tiled, divisor=8)
    tta = TestTimeAugmentation((1.0, 2.0), divisor=8)
    classes = {'labels': ['thing', 'other']}
    model = DenseModel(Finder(), {'det': DetectionTask(num_classes=2)}, classes=classes, tiler=tiler, tta=tta)
    model.use_tta = augmented
    imgs, valid = torch.zeros(2, 3, 96, 128), torch.ones(2, 96, 128, dtype=torch.bool)
    imgs[0, :, 20:80, 24:120], imgs[1, :, 8:24, 4:20] = 1, 1  # larger than any window; whole in one
    valid[1, 64:] = False
    metas = [Meta(0, size=(96, 128), orig_size=(192, 256)), Meta(1, size=(64, 128), orig_size=(64, 128))]
    actual = model(imgs, (), metas, valid, mode='predict')
    sure = [[box for box, score in zip(*each['det'][:2], strict=True) if score > 0.5] for each in actual]
    assert [len(each) for each in sure] == [1, 1]
    assert torch.allclose(sure[0][0], torch.tensor([48.0, 40, 240, 160]), atol=0.1)
    assert torch.allclose(sure[1][0], torch.tensor([4.0, 8, 20, 24]), atol=0.1)
