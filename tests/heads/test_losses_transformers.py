"""Whole training steps against transformers: the loss, matching included, and the gradient of every parameter."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.test_vit_transformers import our_names
from tests.convert.test_import_weights import lw_pair as lw_model
from tests.convert.test_import_weights import rf_pair as rf_model
from tests.heads.detr.test_detr_transformers import DETR, FixedOutput, deformable_pair, maps_of, our_deformable_weights
from tests.heads.detr.test_detr_transformers import INPUT_SIZE as DETR_SIZE
from tests.heads.detr.test_real_time_transformers import INPUT_SIZE as REAL_TIME_SIZE
from tests.heads.detr.test_real_time_transformers import (
    Recorded,
    head_weights,
    lw_config,
    lw_detr,
    our_head,
    rf_pair,
    tiny_lw,
)
from tests.heads.from_transformers import gradient_error, gradients_of, relative_error, translate
from tests.heads.test_dpt_transformers import ADAPTER, HEAD, our_parts, renamed, their_model
from vitdense.adapters.pyramid import LayerPyramid
from vitdense.backbones.vit import ViT
from vitdense.convert.families import LW_DETR, RF_DETR, load_published
from vitdense.convert.families import translate as import_names
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.upernet import UPerNetHead
from vitdense.networks.shared import SharedNetwork
from vitdense.ops.boxes import to_xyxy
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import IouAware, SoftmaxCrossEntropy
from vitdense.tasks.matching import HungarianMatcher
from vitdense.tasks.semantic import SemanticTask
from vitdense.types import IGNORE, Features, Target

transformers = pytest.importorskip('transformers')

NUM_CLASSES = 5


def without_dropout(model: nn.Module) -> nn.Module:
    """Set training mode without dropout: what is drawn at random cannot be compared."""
    for module in model.modules():
        for name in ('dropout', 'activation_dropout', 'attention_dropout'):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model.train()


def objects(batch: int, size: tuple[int, int]) -> tuple[list[Target], list[dict[str, Tensor]]]:
    """Return the same objects as our tasks and as transformers take them; the second image has none."""
    targets, theirs = [], []
    for row in range(batch):
        count = 0 if row == 1 else 3
        boxes = torch.cat([torch.rand(count, 2), 0.05 + 0.4 * torch.rand(count, 2)], dim=1)
        labels = torch.randint(NUM_CLASSES, (count,))
        corners = to_xyxy(boxes) * torch.tensor(size).flip(0).repeat(2)
        targets.append(Target(boxes=corners, labels=labels))
        theirs.append({'class_labels': labels, 'boxes': boxes})
    return targets, theirs


def named(model: nn.Module, name: object) -> dict[str, Tensor]:
    """Return the gradients of `model` under our names, which `name` gives to the weights of a model."""
    return name(SimpleNamespace(state_dict=lambda: gradients_of(model)))


def assert_equal_steps(theirs: nn.Module, ours: nn.Module, name: object, losses: dict[str, Tensor], loss: Tensor):
    """Compare the losses and, after a backward pass, the gradients of all parameters of two models."""
    assert sum(losses.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward(), sum(losses.values()).backward()
    got, wanted = gradients_of(ours), named(theirs, name)
    common = got.keys() & wanted.keys()
    assert len(common) > 0.9 * len(got)
    assert gradient_error({key: got[key] for key in common}, {key: wanted[key] for key in common}) < 1e-4


@pytest.mark.parametrize('two_stage', [False, True])
def test_a_step_of_deformable_detr_equals_transformers(two_stage):
    theirs, ours = deformable_pair(two_stage=two_stage, with_box_refine=True)
    theirs, ours = without_dropout(theirs), ours.train()
    theirs.config.auxiliary_loss = True
    maps = [x.requires_grad_() for x in maps_of((16, 32), (16, 24))]
    targets, labels = objects(3, DETR_SIZE)
    theirs.model.backbone = FixedOutput(*maps)
    wanted = theirs(torch.zeros(3, 3, *DETR_SIZE), labels=labels)
    # their loss leaves the proposals of the first stage out
    task = DetectionTask(matcher=HungarianMatcher(class_weight=1.0), proposal_weight=0.0)
    losses = task.loss(ours(Features(maps=tuple(maps), input_size=DETR_SIZE)), targets)
    leaves = [torch.autograd.grad(total, maps, retain_graph=True) for total in (sum(losses.values()), wanted.loss)]
    assert all(relative_error(*pair) < 1e-4 for pair in zip(*leaves, strict=True))
    if not two_stage:  # theirs has one classifier for all layers
        for predictor in ours.decoder.class_predictors:
            predictor.weight, predictor.bias = ours.decoder.class_predictors[0].parameters()
        losses = task.loss(ours(Features(maps=tuple(maps), input_size=DETR_SIZE)), targets)
    assert_equal_steps(theirs, ours, our_deformable_weights, losses, wanted.loss)


def test_a_step_of_detr_equals_transformers():
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1] * 4, out_features=['stage4']
        ),
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=9,
        num_labels=NUM_CLASSES,
    )
    theirs = transformers.DetrForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if 'norm' in name else parameter.normal_(std=0.15)
    ours = DetrHead(
        (24,),
        (32,),
        NUM_CLASSES,
        channels=32,
        num_encoder_layers=2,
        num_decoder_layers=3,
        num_queries=9,
        num_heads=4,
        ffn_dim=24,
        dropout=0.0,
    )

    def name(model: nn.Module) -> dict[str, Tensor]:
        return translate({key: x for key, x in model.state_dict().items() if 'backbone' not in key}, DETR)

    ours.load_state_dict(name(theirs), strict=True)
    theirs, ours = without_dropout(theirs), ours.train()
    maps = maps_of((32,), (24,))
    targets, labels = objects(3, DETR_SIZE)
    theirs.model.backbone = FixedOutput(*maps)
    wanted = theirs(torch.zeros(3, 3, *DETR_SIZE), labels=labels)
    # their auxiliary losses change the network: what a layer gives is normalised before the next one
    task = DetectionTask(classification=SoftmaxCrossEntropy(), aux_weight=0.0)
    losses = task.loss(ours(Features(maps=maps, input_size=DETR_SIZE)), targets)
    assert_equal_steps(theirs, ours, name, losses, wanted.loss)


@pytest.mark.parametrize('kind', ['rf', 'lw'])
def test_a_step_of_the_real_time_head_equals_transformers(kind):
    if kind == 'rf':
        theirs, ours = rf_pair()
        maps = (torch.randn(2, 32, REAL_TIME_SIZE[0] // 16, REAL_TIME_SIZE[1] // 16),)
    else:
        config = lw_config.LwDetrConfig(
            projector_scale_factors=[2.0, 1.0, 0.5],
            backbone_config=tiny_lw(),
            d_model=32,
            decoder_layers=2,
            decoder_self_attention_heads=4,
            decoder_cross_attention_heads=8,
            decoder_n_points=2,
            num_queries=6,
            group_detr=3,
            num_labels=NUM_CLASSES,
            decoder_ffn_dim=24,
            dropout=0.0,
        )
        theirs, ours = lw_detr.LwDetrForObjectDetection(config), our_head(3)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.uniform_(0.5, 1.5) if 'norm' in name else parameter.normal_(std=0.15)
        ours.load_state_dict(head_weights(theirs), strict=True)
        sizes = [(REAL_TIME_SIZE[0] // stride, REAL_TIME_SIZE[1] // stride) for stride in (8, 16, 32)]
        maps = tuple(torch.randn(2, 32, *size) for size in sizes)
    theirs, ours = without_dropout(theirs), ours.train()
    theirs.config.auxiliary_loss = True
    theirs.config.class_loss_coefficient = 1
    targets, labels = objects(2, REAL_TIME_SIZE)
    theirs.model.backbone = Recorded(*maps)
    wanted = theirs(torch.zeros(2, 3, *REAL_TIME_SIZE), labels=labels)
    outputs = ours(Features(maps=maps, input_size=REAL_TIME_SIZE))
    losses = DetectionTask(classification=IouAware()).loss(outputs, targets)
    assert_equal_steps(theirs, ours, head_weights, losses, wanted.loss)


def label_maps(batch: int, size: tuple[int, int]) -> Tensor:
    labels = torch.randint(NUM_CLASSES, (batch, *size), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = IGNORE
    return labels


def test_a_step_of_dpt_equals_transformers():
    theirs = their_model('project', True)
    adapter, head = our_parts(theirs, 'project', True)
    theirs, adapter, head = without_dropout(theirs), adapter.train(), without_dropout(head)
    imgs, labels = torch.randn(2, 3, 64, 64), label_maps(2, (64, 64))
    states = theirs.dpt(imgs, output_hidden_states=True).hidden_states[1:]
    features = Features(
        layers=tuple(x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2) for x in states),
        cls=tuple(x[:, 0] for x in states),
        input_size=(64, 64),
    )
    losses = SemanticTask(aux_weight=0.4).loss(head(adapter(features, imgs)), [Target(semantic=x) for x in labels])
    del losses['acc']
    wanted = theirs(imgs, labels=labels.long()).loss
    assert sum(losses.values()).item() == pytest.approx(wanted.item(), rel=1e-5)
    sum(losses.values()).backward()
    through_ours = gradients_of(theirs.dpt)
    theirs.zero_grad()
    wanted.backward()
    assert gradient_error(through_ours, gradients_of(theirs.dpt)) < 1e-4
    gradients = gradients_of(theirs)
    parts = renamed(gradients, ADAPTER, ('mixes.', 'projections.', 'resizes.'))
    assert gradient_error(gradients_of(adapter), parts) < 1e-4
    parts = renamed(gradients, HEAD, ('convs.', 'fusions.', 'head.', 'aux.'))
    assert gradient_error(gradients_of(head), parts) < 1e-4


BEIT = [  # theirs -> ours
    (r'^fpn\.fpn1\.conv_transpose1', 'adapters.sem.stages.0.0'),
    (r'^fpn\.fpn1\.normalization', 'adapters.sem.stages.0.1'),
    (r'^fpn\.fpn1\.conv_transpose2', 'adapters.sem.stages.0.3'),
    (r'^fpn\.fpn2', 'adapters.sem.stages.1'),
    (r'^auxiliary_head\.convs\.0', 'heads.sem.aux.0'),
    (r'^auxiliary_head\.classifier', 'heads.sem.aux.2'),
    (r'^decode_head\.psp_modules\.blocks\.(\d)\.conv', r'heads.sem.pooling.projections.\1'),
    (r'^decode_head\.psp_bottleneck', 'heads.sem.pooling.bottleneck'),
    (r'^decode_head\.lateral_convs', 'heads.sem.laterals'),
    (r'^decode_head\.fpn_convs', 'heads.sem.smooths'),
    (r'^decode_head\.fpn_bottleneck', 'heads.sem.fuse'),
    (r'^decode_head\.classifier', 'heads.sem.classifier'),
    (r'\.convolution\.', '.conv.'),
    (r'(heads.*)\.normalization\.', r'\1.norm.'),
]


def test_a_step_of_beit_with_upernet_equals_transformers():
    """The whole model: ViT with relative positions, pyramid, UPerNet and auxiliary head, batch norms in training."""
    config = transformers.BeitConfig(
        hidden_size=24,
        num_hidden_layers=5,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
        out_indices=[2, 3, 4, 5],
        num_labels=NUM_CLASSES,
        auxiliary_channels=6,
    )
    theirs = without_dropout(transformers.BeitForSemanticSegmentation(config))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if 'norm' in name else parameter.normal_(std=0.15)
    timm_args = dict(embed_dim=24, depth=5, num_heads=3, init_values=1.0, pos_embed='none', final_norm=False)
    vit = ViT('vit_tiny_patch16_224', img_size=64, timm_args=timm_args, relative_bias=True)
    head = dict(type=UPerNetHead, channels=24, aux_channels=6, dropout=0.0)
    branch = dict(adapter=dict(type=LayerPyramid, layers=(0, 1, 2, 3)), head=head)
    ours = SharedNetwork(vit, {'sem': branch}, num_classes={'sem': NUM_CLASSES}).train()

    def name(model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        inside = {key.removeprefix('beit.'): x for key, x in state.items() if key.startswith('beit.')}
        named = {f'backbone.model.{key}': x for key, x in our_names(inside, vit.model.state_dict()).items()}
        for key, tensor in state.items():
            if not key.startswith('beit.'):
                for pattern, replacement in BEIT:
                    key = re.sub(pattern, replacement, key)
                named[key] = tensor
        return named

    ours.load_state_dict(name(theirs), strict=True)
    imgs, labels = torch.randn(4, 3, 64, 96), label_maps(4, (64, 96))
    wanted = theirs(imgs, labels=labels.long())
    outputs = ours(imgs)['sem']
    losses = SemanticTask(aux_weight=0.4).loss(outputs, [Target(semantic=x) for x in labels])
    del losses['acc']
    assert relative_error(outputs.logits, wanted.logits) < 1e-5
    assert_equal_steps(theirs, ours, name, losses, wanted.loss)


@pytest.mark.parametrize('kind', ['rf', 'lw'])
def test_a_step_of_whole_real_time_models_equals_transformers(kind):
    """ViT with windows, projector, head and losses."""
    theirs, ours = rf_model(5, 5, split=2) if kind == 'rf' else lw_model(24, split=2)
    published = RF_DETR if kind == 'rf' else LW_DETR
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if 'norm' in name else parameter.normal_(std=0.15)
    load_published(ours, theirs.state_dict(), published, where='weights')
    theirs, ours = without_dropout(theirs), without_dropout(ours)
    theirs.config.auxiliary_loss, theirs.config.class_loss_coefficient = True, 1
    targets, labels = objects(2, (64, 64))
    imgs = torch.randn(2, 3, 64, 64)
    wanted = theirs(imgs, labels=labels)
    losses = DetectionTask(classification=IouAware()).loss(ours(imgs)['det'], targets)

    def name(model: nn.Module) -> dict[str, Tensor]:
        gradients = import_names(model.state_dict(), published, dict(ours.named_parameters()))
        if kind == 'lw':  # theirs is a larger table, resampled to the image
            del gradients['backbone.model.pos_embed']
        return gradients

    assert_equal_steps(theirs, ours, name, losses, wanted.loss)
