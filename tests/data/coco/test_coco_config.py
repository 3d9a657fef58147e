"""The data side of detection configs: two paths make a data set one's own, and classes are stated once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from vitdense.data.class_names import check_classes
from vitdense.data.collate import collate
from vitdense.data.datasets import build_dataset, share_classes
from vitdense.errors import ConfigError
from vitdense.heads.linear import LinearHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.detection import DetectionTask

BASES = Path(__file__).resolve().parents[3] / 'configs/_base_/datasets'


class BuiltError(Exception):
    """A part is made."""


class NeverBuilt(torch.nn.Module):
    def __init__(self) -> None:
        raise BuiltError('a weight was made before the classes were compared')


def recipe(**head):
    branch = dict(adapter=dict(type=NeverBuilt), head=dict(type=LinearHead, **head))
    network = dict(type=SharedNetwork, backbone=dict(type=NeverBuilt), branches=dict(det=branch))
    return dict(network=network, tasks=dict(det=dict(type=DetectionTask)))


@pytest.mark.parametrize('name', ['coco', 'coco_masks', 'coco_mini480'])
def test_real_images_go_through_every_config(name, shared):
    cfg = Config.fromfile(BASES / f'{name}.py').to_dict()
    masks = {'skip_unmasked': True} if name == 'coco_masks' else {}  # few images of this set have masks everywhere
    train, val = (
        build_dataset({**cfg[key]['dataset'], **masks}, root=shared / 'coco_mini480')
        for key in ('train_dataloader', 'val_dataloader')
    )
    share_classes(val, train.metainfo)
    check_classes(train.metainfo, val.metainfo, where='')
    assert masks or (len(train), len(val)) == (336, 206)
    assert len(train.metainfo['classes']['labels']) == 80
    batch = collate([train[0], train[1]])
    assert batch.imgs.dtype == torch.uint8 and batch.targets[0].boxes.dtype == torch.float32
    if masks:
        assert batch.imgs.shape == (2, 3, 640, 640) and batch.targets[0].masks.shape[1:] == (640, 640)
    sample = val[0]
    assert sample.meta.orig_size != sample.meta.size == tuple(sample.img.shape[-2:])


def test_a_users_own_file_needs_two_paths(shared, tmp_path):
    source = json.loads((shared / 'coco_mini480/annotations/instances_val2017.json').read_text())
    images = source['images'][:3]
    ids = {image['id'] for image in images}
    own = dict(
        images=images,
        annotations=[record | dict(category_id=4) for record in source['annotations'] if record['image_id'] in ids],
        categories=[dict(id=4, name='thing'), dict(id=2, name='other')],
    )
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'mine.json').write_text(json.dumps(own))
    for image in images:
        shutil.copy(shared / 'coco_mini480/val2017' / image['file_name'], tmp_path / 'photos')
    cfg = Config.fromfile(BASES / 'coco_mini480.py').to_dict()
    dataset = cfg['train_dataloader']['dataset'] | dict(annotations='mine.json', images='photos')
    data = build_dataset(dataset, root=tmp_path)
    assert data.metainfo['classes']['labels'] == ['other', 'thing'] and len(data) == 3
    with pytest.raises(BuiltError, match='a weight was made'):  # the head gets two classes
        DenseModel(**recipe(num_classes=2), classes=data.metainfo['classes'])


def test_a_number_of_classes_that_is_not_the_datas_is_an_error_before_the_model_is_built():
    with pytest.raises(ConfigError, match='num_classes = 3') as caught:
        DenseModel(**recipe(num_classes=3), classes={'labels': ['a', 'b', 'c', 'd', 'e']})
    assert caught.value.where == 'network.branches.det.head.num_classes' and caught.value.exit_code == 2
