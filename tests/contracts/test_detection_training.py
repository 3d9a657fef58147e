"""Every detector trains on every batch: with objects, without, or unlabelled, all its parameters get a gradient."""

import pytest
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.deformable_detr import DeformableDetrHead
from vitdense.heads.detr import DetrHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import Focal, IouAware, SoftmaxCrossEntropy, Varifocal
from vitdense.types import Batch, Meta, Target

SMALL = dict(channels=16, num_heads=2, hidden=16, num_queries=6, num_encoder_layers=1, num_decoder_layers=2)
DEFORMABLE = dict(type=DeformableDetrHead, num_levels=2, num_points=2, **SMALL)
DETECTORS = {
    'detr': (dict(type=DetrHead, **SMALL), dict(classification=SoftmaxCrossEntropy())),
    'deformable': (dict(refine=False, **DEFORMABLE), dict(classification=Focal())),
    'two stages': (dict(two_stage=True, **DEFORMABLE), dict(classification=Varifocal(), proposals_per_object=2)),
    'dino': (
        dict(
            two_stage=True, class_agnostic=False, mixed_selection=True, anchors=True, look_forward_twice=True,
            denoising=True, **DEFORMABLE,
        ),
        dict(denoising=Denoising(num_queries=4)),
    ),
    'real time': (
        dict(
            two_stage=True, class_agnostic=False, mixed_selection=True, anchors=True, relative_steps=True,
            learned_steps=True, groups=3, **DEFORMABLE,
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
