"""Boxes, a segmentation and a class of one image or video cost one evaluation of the backbone."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.pyramid import SimplePyramid
from vitdense.adapters.reassemble import Reassemble
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.queries import QuerySelection
from vitdense.heads.dpt import DPTHead
from vitdense.heads.linear import LinearHead
from vitdense.inference.demo import Demo, Options
from vitdense.inference.inputs import OutputNames, find_inputs
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.reporting.console import start_logging
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.timing import timed
from vitdense.types import ImageClass, Instances, SemanticMap
from vitdense.video.writer import VideoWriter

SHAPES = ['circle', 'square', 'triangle']
CLASSES = {'labels': SHAPES, 'semantic': ['background', *SHAPES], 'image_label': SHAPES}
DETECTOR = dict(
    type=DeformableDetrHead,
    channels=16,
    num_levels=1,
    num_encoder_layers=0,
    num_decoder_layers=1,
    num_heads=2,
    ffn_dim=16,
    num_queries=4,
    selection=dict(type=QuerySelection),
)


@pytest.fixture
def model() -> DenseModel:
    """Four heads on plain maps, a pyramid and reassembled maps of one ViT."""
    backbone = dict(type=ViT, name='vit_tiny_patch16_224', img_size=64)
    backbone['timm_args'] = dict(embed_dim=24, depth=4, num_heads=2)
    branches = dict(
        det=dict(adapter=dict(type=SimplePyramid, channels=16), head={**DETECTOR, 'num_levels': 4}),
        sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead)),
        cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='both')),
        dpt=dict(adapter=dict(type=Reassemble, layers=(0, 1, 2, 3)), head=dict(type=DPTHead, channels=16)),
    )
    tasks = dict(
        det=dict(type=DetectionTask),
        sem=dict(type=SemanticTask),
        cls=dict(type=ClassificationTask),
        dpt=dict(type=SemanticTask),
    )
    network = dict(type=SharedNetwork, backbone=backbone, branches=branches)
    return build(dict(type=DenseModel, network=network, tasks=tasks), classes=CLASSES)


@pytest.fixture
def calls(model) -> Counter[str]:
    """How often the ViT is called and how often each of its blocks runs."""
    counter: Counter[str] = Counter()
    vit = model.network.backbone
    vit.register_forward_pre_hook(lambda *_: counter.update(['vit']))
    for number, block in enumerate(vit.model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: counter.update([f'block {number}']))
    return counter


def scene(height: int = 64, width: int = 80) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 80, (height, width, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.circle(image, (30, 30), 14, (220, 180, 40), -1))


def test_plain_pyramid_and_reassembled_branches_are_one_call_of_the_vit(model, calls):
    result = Predictor(model, device='cpu', amp='off')(scene())
    assert calls == {'vit': 1, 'block 0': 1, 'block 1': 1, 'block 2': 1, 'block 3': 1}
    kinds = {name: type(prediction) for name, prediction in result.predictions.items()}
    assert kinds == {'det': Instances, 'sem': SemanticMap, 'cls': ImageClass, 'dpt': SemanticMap}


def test_the_time_of_the_backbone_and_of_each_head_adds_up(model):
    result = Predictor(model, device='cpu', amp='off')(scene())
    assert list(result.parts) == ['backbone', 'det', 'sem', 'cls', 'dpt'] and min(result.parts.values()) > 0
    assert sum(result.parts.values()) <= result.times['network'] + result.times['postprocess']
    assert isinstance(timed('det'), nullcontext)  # no stopwatch runs any more


def test_the_demo_shows_everything_from_one_pass(model, calls, tmp_path):
    start_logging(None)
    cv2.imwrite(str(tmp_path / 'scene.png'), scene())
    with VideoWriter(tmp_path / 'film.mp4', (64, 80), 5) as writer:
        for _ in range(3):
            writer.write(scene)
    inputs = find_inputs([str(tmp_path / 'scene.png'), str(tmp_path / 'film.mp4')], outside=tmp_path / 'out')
    demo = Demo(Predictor(model, device='cpu', amp='off'), OutputNames(tmp_path / 'out', inputs), Options(min_score=0))
    demo.run(inputs)
    demo.save(tmp_path / 'results.json')
    assert calls['vit'] == calls['block 3'] == demo.count == 4  # an image and three frames
    image, video = json.loads((tmp_path / 'results.json').read_text())['results']
    for heads, objects in ((image['heads'], image['objects']), (video['heads'], video['frames'][0]['objects'])):
        assert list(heads) == ['det', 'sem', 'cls', 'dpt'] and len(objects['det']) == 12
    assert set(image['ms_parts']) == set(demo.parts) == {'backbone', 'det', 'sem', 'cls', 'dpt'}
    sampled = cv2.imread(image['output'])
    assert sampled.shape[0] >= 64 and Path(video['output']).stat().st_size > 0


def test_joint_outputs_equal_those_of_the_single_heads(model):
    imgs = torch.rand(2, 3, 64, 96)
    network = model.network.eval()
    with torch.no_grad():
        joint = network(imgs)
        for name in network.names:
            network.names = (name,)
            alone = network(imgs)[name][0]
            assert torch.allclose(alone, joint[name][0], atol=1e-6), name
            network.names = ('det', 'sem', 'cls', 'dpt')
