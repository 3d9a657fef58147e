"""Synthetic scenes: the target agrees with the image."""

import pytest
import torch
from torchvision import tv_tensors

from vitdense.data.shapes import ShapesScenes
from vitdense.errors import ConfigError


def test_the_fields_of_a_scene_agree():
    scenes = ShapesScenes(60, size=(48, 64), split='val', num_objects=(1, 6))
    for sample in scenes:
        target = sample.target
        assert sample.img.shape == (3, 48, 64) and sample.img.dtype == torch.uint8
        assert isinstance(target.boxes, tv_tensors.BoundingBoxes) and tuple(target.boxes.canvas_size) == (48, 64)
        count = len(target.labels)
        assert 1 <= count <= 6 and target.masks.shape == (count, 48, 64) and target.masks.sum(0).max() == 1
        sampled = torch.zeros(48, 64, dtype=torch.uint8)
        for mask, label, box, area in zip(target.masks, target.labels, target.boxes, target.area, strict=True):
            sampled[mask] = label.item() + 1
            rows, columns = mask.nonzero(as_tuple=True)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum() > 0
        assert (sampled == target.semantic).all()
        assert target.image_label == target.labels[target.area.argmax()]
    assert len(scenes.metainfo['classes']['semantic']) == len(scenes.metainfo['palette']['semantic']) == 4


def test_validation_is_fixed_and_training_is_not():
    again = [ShapesScenes(4, split='val')[index].img for index in (2, 2)]
    torch.manual_seed(1)
    torch.rand(7)
    again.append(ShapesScenes(4, split='val')[2].img)
    assert (again[0] == again[1]).all() and (again[0] == again[2]).all()
    assert (ShapesScenes(4, split='val', seed=1)[2].img != again[0]).any()
    assert (ShapesScenes(4, split='val')[1].img != again[0]).any()
    train = ShapesScenes(4)
    assert (train[0].img != train[0].img).any()
    torch.manual_seed(0)
    first = train[0].img
    torch.manual_seed(0)
    assert (train[0].img == first).all()


def test_shapes_have_the_area_of_their_formula():
    """Seen alone: a circle pi r^2, a square (1.7 r)^2, a triangle 3 sqrt(3) / 4 (1.15 r)^2."""
    scenes = ShapesScenes(60, split='val', num_objects=(1, 1), radius=(12, 12), noise=0)
    expected = {0: 3.1416 * 144, 1: (1.7 * 12) ** 2, 2: 1.299 * (1.15 * 12) ** 2}
    actual = {label: [] for label in expected}
    for sample in scenes:
        actual[sample.target.labels.item()].append(sample.target.area.item())
    for label, areas in actual.items():
        assert len(areas) > 8 and abs(sum(areas) / len(areas) / expected[label] - 1) < 0.02


def test_occlusion_can_be_switched_off():
    """Circles of one radius all have the same area, unless a neighbour hides a part."""

    def circles(occlusion: bool) -> list[float]:
        options = {'num_objects': (3, 3), 'radius': (6, 6), 'rotation': 45, 'occlusion': occlusion}
        targets = [sample.target for sample in ShapesScenes(40, split='val', **options)]
        return [area for target in targets for area in target.area[target.labels == 0].tolist()]

    assert min(circles(False)) > 105  # 36 pi = 113
    assert min(circles(True)) < 100


def test_wrong_arguments_are_errors_now():
    for options in ({'split': 'test'}, {'num_objects': (0, 3)}, {'radius': (7, 40)}, {'contrast': 300}):
        with pytest.raises(ConfigError) as caught:
            ShapesScenes(4, **options)
        assert caught.value.fix
    with pytest.raises(ConfigError):
        ShapesScenes(0)
