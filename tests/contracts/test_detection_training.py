"""Detectors train on every batch: with objects, without, or unlabelled; and they can overfit a few images."""

import pytest
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.collate import collate
from vitdense.data.shapes import ShapesScenes
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.metrics.average_precision import CocoAP
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import Focal, IouAware, SoftmaxCrossEntropy, Varifocal
from vitdense.types import Batch, Meta, Target

SMALL = dict(channels=16, num_heads=2, ffn_dim=16, num_queries=6, num_encoder_layers=1, num_decoder_layers=2)
DEFORMABLE = dict(type=DeformableDetrHead, num_levels=2, num_points=2, **SMALL)
DETECTORS = {
    'detr': (dict(type=DetrHead, **SMALL), dict(classification=SoftmaxCrossEntropy())),
    'deformable': (dict(decoding=BoxDecoding(refine=False), **DEFORMABLE), dict(classification=Focal())),
    'two stages': (
        dict(selection=QuerySelection(), **DEFORMABLE),
        dict(classification=Varifocal(), proposals_per_object=2),
    ),
    'dense': (
        dict(selection=QuerySelection(content='selected', class_agnostic=False, dense=True), **DEFORMABLE),
        dict(proposals_per_object=3),
    ),
    'dino': (
        dict(
            selection=QuerySelection(content='learned', class_agnostic=False),
            decoding=BoxDecoding(anchors=True, look_forward_twice=True), denoising=True, **DEFORMABLE,
        ),
        dict(denoising=Denoising(num_queries=4)),
    ),
    'real time': (
        dict(
            selection=QuerySelection(content='learned', class_agnostic=False, learned_box_deltas=True),
            decoding=BoxDecoding(anchors=True, relative=True), groups=3, **DEFORMABLE,
        ),
        dict(classification=IouAware()),
    ),
}  # fmt: skip
EMPTY = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
SOME = Target(boxes=torch.tensor([[4.0, 4, 20, 30], [8, 16, 40, 44]]), labels=torch.tensor([0, 2]))
BATCHES = {'some': [SOME, EMPTY], 'empty': [EMPTY, EMPTY], 'unlabelled': [Target(), Target()]}


@pytest.mark.parametrize('targets', BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(('head', 'task'), DETECTORS.values(), ids=DETECTORS)
def test_every_parameter_has_a_finite_gradient(head, task, targets):
    arguments = dict(embed_dim=24, depth=1, num_heads=2)
    vit = dict(type=ViT, name='vit_tiny_patch16_224', img_size=48, patch_size=8, timm_args=arguments)
    network = dict(type=SharedNetwork, backbone=vit, branches=dict(det=dict(adapter=dict(type=PlainMaps), head=head)))
    tasks = dict(det=dict(type=DetectionTask, **task))
    model = DenseModel(network, tasks, classes={'labels': ['circle', 'square', 'triangle']}).train()
    metas = [Meta(0, size=(48, 48)), Meta(1, size=(48, 40))]  # the second one is padded
    batch = model.data_preprocessor(Batch(torch.randint(256, (2, 3, 48, 48)).byte(), targets, metas), True)
    losses = model(*batch, mode='loss')
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_two_synthetic_images_are_overfitted():
    """The small brother of configs/detection/overfit_small.py, which does it with eight images of COCO."""
    torch.manual_seed(1)
    data = ShapesScenes(num_images=2, split='val', size=64, num_objects=(1, 4), radius=(7, 16), occlusion=False)
    batch, classes = collate([data[0], data[1]]), data.metainfo['classes']
    arguments = dict(embed_dim=64, depth=2, num_heads=4)
    vit = ViT('vit_tiny_patch16_224', img_size=64, patch_size=8, stem='conv', timm_args=arguments)
    head = DETECTORS['dino'][0] | dict(channels=64, num_heads=4, ffn_dim=128, num_queries=12, dropout=0.0)
    head |= dict(num_levels=1, num_points=4, num_encoder_layers=0)
    head |= dict(selection=QuerySelection(content='learned', class_agnostic=False, dense=True))
    network = dict(type=SharedNetwork, backbone=vit, branches=dict(det=dict(adapter=dict(type=PlainMaps), head=head)))
    task = dict(type=DetectionTask, proposals_per_object=4, denoising=dict(type=Denoising, num_queries=12), top_k=12)
    model = DenseModel(network, dict(det=task), classes=dict(labels=classes['labels']))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=300, pct_start=0.1)
    for _ in range(300):
        losses, _ = model.parse_losses(model(*model.data_preprocessor(batch, True), mode='loss'))
        optimizer.zero_grad()
        losses.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    metric = CocoAP(head='det', classes=classes['labels'])
    with torch.inference_mode():
        metric.process(batch, model.eval().val_step(batch))
    scores = metric.evaluate(2)
    assert scores['det/AP50'] >= 0.95, scores
