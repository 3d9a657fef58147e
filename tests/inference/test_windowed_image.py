"""Images in windows: every head, files that are never read whole, and results whose image is a smaller copy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.linear import LinearHead
from vitdense.inference import predictor as inference
from vitdense.inference import windowed_image
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.eomt import EoMT
from vitdense.networks.shared import SharedNetwork
from vitdense.ops.packed_masks import PackedMasks
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import SoftmaxCrossEntropy
from vitdense.tasks.mask_classification import InstanceTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time import sliding_window
from vitdense.test_time.merged_objects import original_objects
from vitdense.test_time.sliding_window import Tiler
from vitdense.types import Instances, Meta, ObjectOutputs

PIXELS = np.random.default_rng(0).integers(0, 255, (75, 101, 3), dtype=np.uint8)
QUERIES = 6
HEADS = ['semantic', 'boxes', 'masks', 'class']


def model_of(kind: str) -> DenseModel:
    torch.manual_seed(0)
    vit = ViT('vit_tiny_patch16_224', patch_size=8, img_size=32, timm_args=dict(embed_dim=24, depth=2, num_heads=2))
    labels = {'labels': ['car', 'bus']}
    if kind == 'masks':
        network = EoMT(vit, num_queries=QUERIES, num_blocks=1, name='head', num_classes={'head': 2})
        return DenseModel(network, {'head': InstanceTask(top_k=QUERIES)}, classes=labels)
    options = dict(
        channels=16, num_heads=2, ffn_dim=16, num_queries=QUERIES, num_encoder_layers=1, num_decoder_layers=1
    )
    head, task, classes = {
        'semantic': (LinearHead((24,), (8,), 3, norm='none'), SemanticTask(), {'semantic': ['a', 'b', 'c']}),
        'boxes': (DetrHead((24,), (8,), 2, **options), DetectionTask(classification=SoftmaxCrossEntropy()), labels),
        'class': (ClassHead((24,), (8,), 3), ClassificationTask(), {'image_label': ['a', 'b', 'c']}),
    }[kind]  # fmt: skip
    return DenseModel(
        SharedNetwork(vit, {'head': dict(adapter=PlainMaps(24, 8), head=head)}), {'head': task}, classes=classes
    )


def predictor_of(kind: str, **options) -> Predictor:
    return Predictor(model_of(kind), device='cpu', amp='off', **options)


def same(first, second) -> None:
    for one, other in zip(first, second, strict=True):
        if one is not None:
            one, other = (torch.as_tensor(np.asarray(value)).double() for value in (one, other))
            assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize('kind', HEADS)
def test_an_image_of_one_window_is_predicted_as_without_windows(kind):
    whole = PIXELS[:72, :96]  # whole patches: scores of masks are means over their pixels, padding included in windows
    same(predictor_of(kind, tile=96)(whole)['head'], predictor_of(kind)(whole)['head'])


@pytest.mark.parametrize('kind', HEADS)
def test_a_file_that_is_read_in_windows_is_predicted_as_an_array(tmp_path, monkeypatch, kind):
    Image.fromarray(PIXELS).save(tmp_path / 'a.tif', compression='tiff_lzw', tiffinfo={278: 16})
    tiled = predictor_of(kind, tile=32)
    array = tiled(PIXELS)
    monkeypatch.setattr(inference, 'IN_WINDOWS', 1000)
    monkeypatch.setattr(inference, 'read_image', None)  # the file is not read whole
    monkeypatch.setattr(windowed_image, 'PREVIEW', 40)
    monkeypatch.setattr(sliding_window, 'PACKED_FROM', 1000)
    file = tiled(tmp_path / 'a.tif')
    same(array['head'], file['head'])
    assert file.size == (75, 101) == array.size and file.image.shape == (25, 34, 3)
    assert json.loads(file.to_json()) == {**json.loads(array.to_json()), 'file': str(tmp_path / 'a.tif')}
    if kind == 'masks':
        assert isinstance(file['head'].masks, PackedMasks) and file['head'].masks.size == (75, 101)
    assert file.draw(legend=False, min_score=0.0).shape == (25, 34, 3)


def three_objects(imgs, valid):
    """Three objects in the middle of each image, the worst at the right."""
    left = torch.tensor([6.0, 14, 22])
    boxes = torch.stack([left, left + 2, left + 4, left + 10], dim=1)
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    for mask, start in zip(masks, left.int().tolist(), strict=True):
        mask[start + 2 : start + 10, start : start + 4] = True
    actual = Instances(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long), masks)
    return {'det': ObjectOutputs((actual,) * len(imgs))}


@pytest.mark.parametrize(('most', 'count'), [(None, 12), (2, 8)])
def test_every_window_has_all_objects_unless_there_is_a_budget(monkeypatch, most, count):
    imgs, metas = torch.zeros(1, 3, 64, 64), [Meta(0, orig_size=(60, 64), size=(60, 64))]
    tiler = Tiler(32, 32, accumulate='labels', max_objects=most)
    whole = original_objects(tiler(three_objects, imgs, metas=metas)['det'], metas)[0]
    assert len(whole.scores) == count and whole.masks.shape == (count, 60, 64)
    monkeypatch.setattr(sliding_window, 'PACKED_FROM', 0)
    packed = original_objects(tiler(three_objects, imgs, metas=metas)['det'], metas)[0]
    assert isinstance(packed.masks, PackedMasks) and torch.equal(packed.masks.tensor(), whole.masks)
    assert torch.equal(packed.boxes, whole.boxes)


def test_predictions_fit_the_smaller_copy():
    masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    masks[0, 8:20, 12:36] = True
    actual = Instances(torch.tensor([[12.0, 8, 36, 20]]), torch.tensor([0.9]), torch.tensor([0]), PackedMasks.of(masks))
    small = windowed_image.at_preview({'det': actual}, 4)['det']
    assert small.boxes.tolist() == [[3, 2, 9, 5]] and small.masks.shape == (1, 10, 15)
    assert small.masks[0, 2:5, 3:9].all() and small.masks.sum() == 18


def test_packed_masks_of_parts_are_those_of_whole_masks():
    generator = np.random.default_rng(0)
    size = (13, 17)
    for height, width, top, left in [(5, 4, 2, 3), (13, 17, 0, 0), (13, 3, 0, 14), (1, 17, 12, 0)]:
        part = generator.random((height, width)) < 0.6
        whole = np.zeros(size, bool)
        whole[top : top + height, left : left + width] = part
        for mask in (part, np.ones_like(part), np.zeros_like(part)):
            whole[top : top + height, left : left + width] = mask
            packed = PackedMasks.of_parts([(torch.from_numpy(mask), (top, left))], size)
            assert packed.runs == PackedMasks.of(torch.from_numpy(whole)[None]).runs
            assert np.array_equal(packed.every(3)[0], whole[::3, ::3])
