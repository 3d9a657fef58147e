"""Label statistics: errors for a single class, and what is logged before the first step."""

import logging

import numpy as np
import pytest
from PIL import Image

from vitdense.data.label_check import LabelStatistics
from vitdense.data.mixture import Mixture
from vitdense.data.segmentation import SegmentationDataset
from vitdense.errors import DataError

TWO = ['ground', 'box']


@pytest.fixture
def data(tmp_path):
    """Make a data set of label maps, given as rows of numbers (or of colours)."""

    def make(*maps, folder='x', **options):
        for number, numbers in enumerate(maps):
            array = np.array(numbers, np.uint8)
            for kind, content in (('i', array[..., :1].repeat(3, -1) if array.ndim == 3 else array), ('m', array)):
                path = tmp_path / folder / kind / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)
        return SegmentationDataset('i', 'm', root=tmp_path / folder, name='mine', **{'classes': TWO, **options})

    return make


def test_masks_of_0_and_255_are_errors_with_a_label_map_as_fix(data, caplog):
    created = data([[0, 255]], [[255, 0]])
    assert created.check() == 2
    assert "class 1 'box' is in none of the 2 label maps checked, while 255 (ignored) is in all of them" in caplog.text
    assert 'if that is the class: label_map={0: 0, 255: 1}' in caplog.text
    with pytest.raises(DataError, match="class 0 'ground' is the only one in the 2 label maps") as caught:
        created.check(training=True)
    assert 'label_map={0: 0, 255: 1}' in caught.value.fix and '255 (in all files)' in caught.value.why
    assert data([[0, 255]], folder='y', label_map={0: 0, 255: 1}).check(training=True) == 1


@pytest.mark.parametrize(
    ('maps', 'options', 'words'),
    [
        ([[[0, 1]]], {'classes': ['box'], 'reduce_zero_label': True}, "one class only, 'box'"),
        ([[[0, 0]]], {'classes': ['box']}, "one class only, 'box'"),
        ([[[255, 255]]], {}, 'no pixel of the 1 label maps is labelled'),
        ([[[0, 0]]], {'reduce_zero_label': True}, 'no pixel of the 1 label maps is labelled'),
        ([[[0, 1]], [[2, 2]]], {'label_map': {0: 1, 1: 1, 2: 1}}, "class 1 'box' is the only one in the 2"),
        ([[[[9, 9, 9]]]], {'colored_labels': True, 'palette': [[9, 9, 9], [1, 2, 3]]}, "class 0 'ground' is the only"),
    ],
)
def test_labels_of_one_class_are_errors(data, maps, options, words):
    created = data(*maps, **options)
    with pytest.raises(DataError, match=words) as caught:
        created.check(training=True)
    assert caught.value.fix and 'loss' in caught.value.why
    created.check()  # a test set may be so: there is no score, then


def test_all_files_are_checked_before_an_error(data):
    maps = [[[0, 255]]] * 20 + [[[1, 255]]]
    assert data(*maps).check(limit=3, training=True) == 3  # the last one is among the three
    assert data(*maps[::-1][:20], [[0, 255]], maps[-1], [[0, 0]]).check(limit=2, training=True) == 2
    with pytest.raises(DataError, match='in the 20 label maps'):
        data(*maps[:20], folder='y').check(limit=2, training=True)


def test_absent_classes_and_ignored_numbers_are_logged(data, caplog):
    caplog.set_level(logging.INFO, 'vitdense')
    data([[0, 1, 11, 12]], [[0, 0, 11, 11]], classes=[f'c{k}' for k in range(5)], ignore=[11, 12]).check()
    assert "mine: classes 2 'c2', 3 'c3', 4 'c4' are in none of the 2 label maps checked" in caplog.text
    assert '50.0% of the pixels of 2 label maps (of 2) are ignored' in caplog.text
    assert '11 (in all files), 12 (in 1 of 2 files)' in caplog.text
    caplog.clear()
    data([[0, 1]], folder='y').check()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_mixture_needs_two_classes_among_all_its_label_maps(data):
    first, second = data([[0, 255]], folder='a'), data([[1, 255]], folder='b')
    Mixture(dict(a=first, b=second)).check(training=True)
    with pytest.raises(DataError, match='is the only one'):
        Mixture(dict(a=first, b=data([[0, 0]], folder='c'))).check(training=True)
    with pytest.raises(DataError, match='is the only one'):
        Mixture(dict(a=first, b=second), weights=dict(a=1, b=0)).check(training=True)  # b is not drawn


def test_a_renumbered_palette_is_an_error(tmp_path, data):
    created = data([[0, 1, 1]], palette=[[255, 0, 0], [0, 0, 255]])
    path = tmp_path / 'x/m/0.png'
    for palette, good in (
        ([255, 0, 0, 0, 0, 255], True),
        ([0, 0, 255, 255, 0, 0], False),  # the colours of the classes, at each other's numbers
        ([0, 0, 255, 1, 2, 3], True),  # colours of other things
    ):
        image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), 'P')
        image.putpalette(palette)
        image.save(path)
        if good:
            assert created.check() == 1
            continue
        with pytest.raises(DataError, match="number 0 is class 'ground' but has the colour of 'box'") as caught:
            created.check()
        assert 'colored_labels=True' in caught.value.fix
        assert data([[0, 1, 1]], folder='y').check() == 1  # no palette was given: nothing to compare with
        colored = SegmentationDataset(
            'i', 'm', root=tmp_path / 'x', classes=TWO, palette=[[255, 0, 0], [0, 0, 255]], colored_labels=True
        )
        assert colored[0].target.semantic.tolist() == [[1, 0, 0]]


def test_counts_are_those_of_numpy():
    rng = np.random.default_rng(0)
    statistics = LabelStatistics(['a', 'b', 'c'])
    maps = [rng.choice([0, 1, 2, 255], (5, 7)).astype(np.uint8) for _ in range(4)]
    for labels in maps:
        statistics.add(labels + np.where(labels == 255, 0, 10).astype(np.uint8), labels)
    assert statistics.pixels.tolist() == np.bincount(np.stack(maps).ravel(), minlength=256).tolist()
    assert statistics.numbers == {0: 10, 1: 11, 2: 12} and statistics.ignored == {255: 4} and statistics.files == 4
