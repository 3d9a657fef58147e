"""Weights of a trained model for other classes: rows by class name, everything else complete."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.pyramid import SimplePyramid
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.class_rows import FIX, class_layers, match_classes, transfer_class_rows
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError
from vitdense.heads.classify import ClassHead
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.heads.dpt import DPTHead
from vitdense.heads.linear import LinearHead
from vitdense.heads.upernet import UPerNetHead
from vitdense.model import DenseModel
from vitdense.networks.eomt import EoMT
from vitdense.networks.shared import SharedNetwork
from vitdense.storage.weights import load_weights
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.build import make_trainer
from vitdense.train.start import FromWeights

VIT = dict(type=ViT, name='vit_tiny_patch16_224', img_size=32, timm_args=dict(embed_dim=24, depth=2, num_heads=2))
DETR = dict(channels=16, num_heads=2, ffn_dim=16, num_encoder_layers=0, num_decoder_layers=2, num_queries=3)
SEMANTIC, DETECTION = dict(type=SemanticTask), dict(type=DetectionTask)
HEADS = {
    'linear': (dict(type=LinearHead), SEMANTIC),
    'upernet': (dict(type=UPerNetHead, channels=8, aux_channels=8), SEMANTIC),
    'upernet without auxiliary head': (dict(type=UPerNetHead, channels=8, aux_index=None), SEMANTIC),
    'dpt': (dict(type=DPTHead, channels=8), SEMANTIC),
    'dpt without auxiliary head': (dict(type=DPTHead, channels=8, aux=False), SEMANTIC),
    'class': (dict(type=ClassHead, pool='average'), dict(type=ClassificationTask)),
    'attentive class': (dict(type=ClassHead, pool='attention', num_heads=2), dict(type=ClassificationTask)),
    'detr': (dict(type=DetrHead, channels=16, num_heads=2, ffn_dim=16, num_queries=3), DETECTION),
    'deformable': (dict(type=DeformableDetrHead, **DETR), DETECTION),
    'two-stage': (dict(type=DeformableDetrHead, **DETR, selection=dict(type=QuerySelection)), DETECTION),
    'dino': (
        dict(
            type=DeformableDetrHead,
            **DETR,
            selection=dict(type=QuerySelection, content='learned', class_agnostic=False),
            denoising=True,
        ),
        dict(type=DetectionTask, denoising=dict(type=Denoising)),
    ),
    'groups': (
        dict(
            type=DeformableDetrHead,
            **DETR,
            selection=dict(type=QuerySelection, class_agnostic=False),
            decoding=dict(type=BoxDecoding, shared_predictors=True),
            groups=3,
        ),
        DETECTION,
    ),
    'eomt': (None, dict(type=MaskSemanticTask)),
    'eomt instances': (None, dict(type=InstanceTask)),
}


def created(kind: str, names: list[str]) -> DenseModel:
    head, task = HEADS[kind]
    classes = dict.fromkeys(('semantic', 'labels', 'image_label'), names)
    if head is None:
        network = dict(type=EoMT, backbone=VIT, num_queries=3, num_blocks=1, name='it')
    else:
        pyramid = 'upernet' in kind or 'dpt' in kind
        adapter = dict(type=SimplePyramid) if pyramid else dict(type=PlainMaps)
        network = dict(type=SharedNetwork, backbone=VIT, branches=dict(it=dict(adapter=adapter, head=head)))
    return DenseModel(network, dict(it=task), classes=classes)


@pytest.mark.parametrize('kind', HEADS)
def test_heads_name_exactly_the_layers_that_depend_on_the_number_of_classes(kind: str) -> None:
    three, five = created(kind, list('abc')), created(kind, list('abcde'))
    shapes = {name: value.shape for name, value in five.state_dict().items()}
    differ = {name for name, value in three.state_dict().items() if value.shape != shapes[name]}
    layers = {name: layer for _, name, layer in class_layers(three)}
    named = {name for name in shapes if name.rpartition('.')[0] in layers}
    assert differ == named and differ
    state = three.state_dict()
    for name, layer in layers.items():
        assert state[f'{name}.weight'].shape[0] == 3 + layer.num_extra


@pytest.mark.parametrize('kind', HEADS)
def test_rows_follow_the_names_of_their_classes(kind: str) -> None:
    old, new = ['car', 'traffic_light', 'dog', 'tree'], ['Traffic Light', 'boat', 'car', 'sky', 'dog']
    source = {2: 0, 0: 1, 4: 2}  # row -> row in the trained model
    torch.manual_seed(1)
    trained, model = created(kind, old), created(kind, new)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_()
    before, theirs = {name: value.clone() for name, value in model.state_dict().items()}, trained.state_dict()
    state = transfer_class_rows(model, theirs, {'semantic': old, 'labels': old, 'image_label': old}, where='here')
    load_weights(model, state, where='here')
    layers = {name: layer for _, name, layer in class_layers(model)}
    for name, value in model.state_dict().items():
        layer = layers.get(name.rpartition('.')[0])
        if layer is None:
            assert torch.equal(value, theirs[name]), name
            continue
        for row in range(5):
            expected = theirs[name][source[row]] if row in source else before[name][row]
            assert torch.equal(value[row], expected), (name, row)
        assert torch.equal(value[5:], theirs[name][4:]) and len(value) == 5 + layer.num_extra


@pytest.mark.parametrize('kind', HEADS)
def test_the_same_classes_come_back_as_they_are(kind: str) -> None:
    model, trained = created(kind, list('abc')), created(kind, list('abc'))
    classes = dict.fromkeys(('semantic', 'labels', 'image_label'), list('abc'))
    state = transfer_class_rows(model, trained.state_dict(), classes, where='here')
    assert all(state[name] is value or torch.equal(state[name], value) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(
    ('wanted', 'trained', 'rows'),
    [
        ('a b c', 'c a b', [1, 2, 0]),
        ('Car DOG', 'car dog', [0, 1]),
        ('car Car', 'Car car', [1, 0]),  # the same letters come first
        ('CAR', 'car Car', [None]),  # two candidates
        ('CAR Car', 'car', [None, None]),
        ('traffic-light', 'traffic_light', [0]),
        ('c++ c#', 'C# c', [None, 0]),
        ('x', 'y', [None]),
        ('_', '-', [None]),
    ],
)
def test_names_are_matched_exactly_then_without_case_and_separators(
    wanted: str, trained: str, rows: list[int | None]
) -> None:
    assert [row.source for row in match_classes(wanted.split(), trained.split())] == rows


def test_spaces_between_digits_count() -> None:
    assert [row.source for row in match_classes(['wine glass', '1 2'], ['12', 'wineglass'])] == [1, None]


def test_weights_that_do_not_name_their_classes(caplog: pytest.LogCaptureFixture) -> None:
    trained, model = created('linear', list('abc')), created('linear', list('abcd'))
    with pytest.raises(CheckpointError, match='do not say which classes') as caught:
        transfer_class_rows(model, trained.state_dict(), {}, where='weights.safetensors')
    assert 'model/' in caught.value.fix and "'it' has other classes here" in caught.value.why
    other = created('linear', list('xyz'))
    state = transfer_class_rows(other, trained.state_dict(), {}, where='weights.safetensors')
    assert torch.equal(state['network.heads.it.classifier.weight'], trained.network.heads['it'].classifier.weight)
    assert 'taken as those of the config' in caplog.text


def test_whatever_is_no_class_row_is_still_complete_or_an_error() -> None:
    trained, model = created('linear', list('ab')), created('linear', list('abc'))
    whole = trained.state_dict()
    for change in ('network.backbone.model.norm.weight', 'network.heads.it.classifier.bias'):
        state = {name: value for name, value in whole.items() if name != change}
        state = transfer_class_rows(model, state, {'semantic': list('ab')}, where='here')
        with pytest.raises(CheckpointError) as caught:
            load_weights(model, state, where='here', fix=FIX)
        assert f'missing in the file: {change}' in caught.value.why
        assert 'partial_weights' not in caught.value.fix
    wider = whole | {'network.heads.it.classifier.weight': torch.zeros(2, 48, 1, 1)}
    with pytest.raises(CheckpointError, match=r'another shape: network\.heads\.it\.classifier\.weight: file \(2, 48'):
        load_weights(model, transfer_class_rows(model, wider, {'semantic': list('ab')}, where='here'), where='here')


RUN = """
from torch.optim import AdamW
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.segmentation import SegmentationDataset
from vitdense.heads.linear import LinearHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask

seed = 0
data_root = '.'
amp = 'off'
sample_images = 0
model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_tiny_patch16_224', img_size=32,
                      timm_args=dict(embed_dim=24, depth=2, num_heads=2)),
        branches=dict(sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer'))),
    ),
    tasks=dict(sem=dict(type=SemanticTask)),
)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type=SegmentationDataset, images='images', labels='labels', classes=CLASSES))
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))
schedule = dict(max_iters=1, val_interval=1)
"""


@pytest.fixture
def config(tmp_path: Path):
    """Return a function: the config of a run on two images with these classes."""
    rng = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for row in range(2):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / 'images' / f'{row}.png')
        Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8)).save(tmp_path / 'labels' / f'{row}.png')

    def write(*classes: str):
        path = tmp_path / f'{len(list(tmp_path.glob("*.py")))}.py'
        path.write_text(RUN.replace('CLASSES', repr(list(classes))))
        return load_config(path, [f'data_root={tmp_path}'])

    return write


@pytest.mark.parametrize('source', ['model', 'step_000001.pth'])
def test_a_run_begins_with_a_trained_model_of_other_classes(
    tmp_path: Path, config, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(config('ground', 'box'), work_dir=tmp_path / 'first', device='cpu')
    trained = first.network_model.state_dict()
    logging.getLogger('vitdense').propagate = True
    with caplog.at_level(logging.INFO, 'vitdense'):
        runner = make_trainer(
            config('sky', 'Box', 'ground'),
            tmp_path / 'second',
            device='cpu',
            start=FromWeights(tmp_path / 'first' / source),
        )
    for line in ('kept          1  ground', 'respelled     1  box -> Box', 'new           1  sky'):
        assert line in caplog.text
    name = 'network.heads.sem.classifier.weight'
    model = runner.network_model.state_dict()
    assert torch.equal(model[name][1:], trained[name].flip(0))
    assert all(torch.equal(model[key], trained[key]) for key in trained if 'classifier' not in key)
    plain = make_trainer(config('sky', 'Box', 'ground'), tmp_path / 'third', device='cpu').network_model.state_dict()
    assert torch.equal(model[name][0], plain[name][0])  # as the head initialises it


def test_the_same_classes_begin_with_the_same_weights_as_before(tmp_path: Path, config) -> None:
    first = train(config('ground', 'box'), work_dir=tmp_path / 'first', device='cpu')
    runner = make_trainer(
        config('ground', 'box'), tmp_path / 'b', device='cpu', start=FromWeights(tmp_path / 'first' / 'model')
    )
    model = runner.network_model.state_dict()
    assert all(torch.equal(model[name], value) for name, value in first.network_model.state_dict().items())
