"""What a test writes: COCO results with the ids of the annotation file, in the order of the data set."""

import json
from types import SimpleNamespace

import pytest
import torch

from vitdense.commands import test as testing
from vitdense.commands.test import PredictionHook
from vitdense.types import Batch, Instances, Meta

METAINFO = {'classes': {'labels': ['ant', 'bee', 'cow']}, 'category_ids': {'labels': [3, None, 90]}}


def loader_of(dataset):
    """A loader as the engine wraps a data set, without the workers."""
    return SimpleNamespace(dataset=SimpleNamespace(dataset=SimpleNamespace(dataset=dataset)))


def looked_at(folder, image_ids, metainfo=METAINFO, masks=None):
    """A hook that has seen images, each with one ant, one bee and one cow."""
    runner = SimpleNamespace(
        metainfo=metainfo,
        network_model=SimpleNamespace(tasks={'det': SimpleNamespace(field='labels')}),
        test_dataloader=loader_of(SimpleNamespace()),
    )
    hook = PredictionHook(folder, None)
    boxes = torch.tensor([[1, 2, 4, 7], [0, 0, 1, 1], [5, 5, 9.5, 6]])
    for number in image_ids:
        actual = Instances(boxes, torch.tensor([0.9, 0.5, 0.25]), torch.arange(3), masks)
        hook.after_test_iter(runner, 0, Batch(torch.zeros(1, 3, 8, 8), [None], [Meta(number)]), [{'det': actual}])
    return hook, runner


def test_results_have_the_category_ids_of_the_file(tmp_path):
    hook, runner = looked_at(tmp_path, [7])
    hook.after_test_epoch(runner)
    assert json.loads((tmp_path / 'det/results.json').read_text()) == [
        {'image_id': 7, 'category_id': 3, 'bbox': [1, 2, 3, 5], 'score': pytest.approx(0.9)},
        {'image_id': 7, 'category_id': 90, 'bbox': [5, 5, 4.5, 1], 'score': 0.25},  # the file has no bee
    ]
    assert [path.name for path in (tmp_path / 'det').iterdir()] == ['results.json']


def test_data_without_ids_count_from_one_and_masks_get_a_file(tmp_path):
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 3:7] = True
    hook, runner = looked_at(tmp_path, ['a'], {'classes': METAINFO['classes']}, masks)
    hook.after_test_epoch(runner)
    rows = json.loads((tmp_path / 'det/results_segm.json').read_text())
    assert [(row['image_id'], row['category_id']) for row in rows] == [('a', 1), ('a', 2), ('a', 3)]
    assert rows[0]['segmentation']['size'] == [8, 8] and set(rows[0]) == {
        'image_id',
        'category_id',
        'segmentation',
        'score',
    }


def test_images_of_all_ranks_stand_in_the_order_of_the_data(tmp_path, monkeypatch):
    shares = [looked_at(tmp_path, ids)[0]._rows for ids in ([0, 2, 4], [1, 3])]
    monkeypatch.setattr(testing, 'all_gather_object', lambda rows: shares)
    hook, runner = looked_at(tmp_path, [])
    hook.after_test_epoch(runner)
    rows = json.loads((tmp_path / 'det/results.json').read_text())
    assert [row['image_id'] for row in rows[::2]] == [0, 1, 2, 3, 4]
