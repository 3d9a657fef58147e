"""Descriptions of weights are untrusted data: every field is checked, nothing large is built or fetched."""

import json
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitdense
from tests.conftest import CONFIG
from vitdense.checkpoints.head_files import read_head
from vitdense.checkpoints.limits import limit_tensors
from vitdense.checkpoints.model_folder import read_model_folder, save_model_folder
from vitdense.checkpoints.trained import is_head_file, read_trained
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError, ConfigError, VitDenseError
from vitdense.multihead.add_head import choose_start, requested_head
from vitdense.multihead.merge import split_heads
from vitdense.registry import build
from vitdense.train.build import make_trainer
from vitdense.train.start import FromCheckpoint, FromWeights

VIT = {
    'type': 'vitdense.backbones.vit.ViT',
    'name': 'vit_tiny_patch16_224',
    'img_size': 32,
    'timm_args': {'embed_dim': 24, 'depth': 2, 'num_heads': 2},
}
HEAD = {'type': 'vitdense.heads.detr.deformable_detr.DeformableDetrHead', 'channels': 16, 'num_heads': 2, 'ffn_dim': 16}
RECIPE = {
    'type': 'vitdense.model.DenseModel',
    'network': {
        'type': 'vitdense.networks.shared.SharedNetwork',
        'backbone': VIT,
        'branches': {
            'det': {
                'adapter': {'type': 'vitdense.adapters.plain.PlainMaps'},
                'head': {**HEAD, 'num_encoder_layers': 1, 'num_decoder_layers': 1, 'num_queries': 3, 'num_levels': 2},
            }
        },
    },
    'tasks': {'det': {'type': 'vitdense.tasks.detection.DetectionTask'}},
}
SHORT = ['schedule.max_iters=1', 'schedule.warmup_iters=0']
BACKBONE, HEAD_PATH = ('recipe', 'network', 'backbone'), ('recipe', 'network', 'branches', 'det', 'head')


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('described') / 'model'
    model = build(RECIPE, classes={'labels': ['a', 'b']})
    metainfo = {'classes': {'labels': ['a', 'b']}, 'palette': {'labels': [(1, 2, 3), (4, 5, 6)]}}
    metainfo['category_ids'] = {'labels': [7, None]}
    crop = {'type': 'vitdense.data.transforms.evaluation_crop.EvaluationCrop', 'size': 32}
    context = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'step': 3}
    save_model_folder(folder, RECIPE, model.state_dict(), metainfo=metainfo, transforms=[crop], extra=context)
    return folder


@pytest.fixture
def changed(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function: the folder with one value of its description changed."""

    def change(location: tuple, value: Any) -> Path:
        folder = tmp_path / 'model'
        folder.mkdir(exist_ok=True)
        (folder / 'model.safetensors').unlink(missing_ok=True)
        (folder / 'model.safetensors').symlink_to(source / 'model.safetensors')
        info = json.loads((source / 'model.json').read_text())
        holder = info
        for key in location[:-1]:
            holder = holder[key]
        holder[location[-1]] = value
        (folder / 'model.json').write_text(json.dumps(info))
        return folder

    return change


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*options: object, **_: object) -> None:
        raise AssertionError(f'asked the network for {options[:2]}')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr('vitdense.pretrained.creation._fetch', refuse)


def test_the_folder_itself_is_read(source: Path) -> None:
    assert vitdense.load(source, device='cpu').metainfo['category_ids'] == {'labels': [7, None]}


WRONG = [
    (('format',), '1'),
    (('classes',), None),
    (('classes',), ['a', 'b']),
    (('classes',), {'labels': 'ab'}),
    (('classes',), {'labels': [1, 2]}),
    (('palette',), {'labels': None}),
    (('palette',), {'labels': [[1, 2, 300], [1, 2, 3]]}),
    (('palette',), {'labels': [[1, 2], [1, 2]]}),
    (('category_ids',), {'labels': ['1', '2']}),
    (('operating_points',), {'det': {'threshold': [0.5, 2]}}),
    (('operating_points',), {'det': {'threshold': [0.5], 'temperature': 0}}),
    (('operating_points',), [0.5]),
    (('mean',), [0.5, 0.5]),
    (('mean',), 'abc'),
    (('std',), [0.5, 0.0, 0.5]),
    (('std',), [1e999, 1, 1]),
    (('step',), -1),
    (('step',), True),
    (('weights',), None),
    (('weights',), {'file': 3, 'sha256': '0' * 64}),
    (('weights',), {'file': 'model.safetensors', 'sha256': 'x'}),
    (('recipe',), []),
    (('recipe',), None),
    (('recipe', 'network'), None),
    (('recipe', 'tasks'), []),
    (('recipe', 'tasks', 'det'), 5),
    (('transforms',), None),
    (('transforms',), [3]),
    (('transforms',), [{'type': 'vitdense.data.transforms.evaluation_crop.EvaluationCrop', 'size': 'x'}]),
    ((*BACKBONE, 'img_size'), 'x'),
    ((*BACKBONE, 'img_size'), [32]),
    ((*BACKBONE, 'patch_size'), 0),
    ((*BACKBONE, 'timm_args', 'depth'), -1),
    ((*BACKBONE, 'timm_args', 'num_heads'), 0),
    ((*BACKBONE, 'timm_args', 'embed_dim'), 1.5),
    ((*HEAD_PATH, 'num_levels'), None),
    ((*HEAD_PATH, 'num_queries'), -1),
    ((*HEAD_PATH, 'num_points'), 'x'),
    (('recipe', 'tiler'), 7),
    (('recipe', 'tta'), 'x'),
]


@pytest.mark.parametrize(('location', 'value'), WRONG)
def test_every_field_is_checked(changed: Callable[..., Path], location: tuple, value: Any) -> None:
    with pytest.raises(VitDenseError) as caught:
        vitdense.load(changed(location, value), device='cpu')
    assert caught.value.fix and caught.value.exit_code in (2, 3)


HUGE = [
    *(((*BACKBONE, 'timm_args', key), value) for key in ('depth', 'embed_dim') for value in (10_000, 10**6, 10**12)),
    *(((*BACKBONE, 'img_size'), value) for value in (16 * 10_000, 16 * 10**9)),
    *(
        ((*HEAD_PATH, key), value)
        for key in ('num_levels', 'num_queries', 'groups', 'num_encoder_layers', 'num_decoder_layers', 'ffn_dim')
        for value in (20_000, 10**6, 10**12)
    ),
    (('transforms',), [{'type': 'vitdense.data.transforms.evaluation_crop.EvaluationCrop', 'size': 10**5}]),
    (('recipe', 'tiler'), {'type': 'vitdense.test_time.sliding_window.Tiler', 'size': 10**5, 'stride': 16}),
]


@pytest.mark.parametrize(('location', 'value'), HUGE)
def test_huge_sizes_take_neither_memory_nor_time(
    changed: Callable[..., Path], location: tuple, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(VitDenseError):
        read_model_folder(changed(location, value))
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # kB


@pytest.mark.parametrize(
    'text',
    ['', '{', '[]', 'null', '{"format": 1}', '[' * 100_000, '{"a":' * 5000, '1' * 10_000, '{"format": NaN}', '\x00'],
)
def test_texts_that_are_no_description(changed: Callable[..., Path], text: str) -> None:
    folder = changed(('step',), 3)
    (folder / 'model.json').write_text(text)
    with pytest.raises(CheckpointError, match='not a model folder'):
        read_model_folder(folder)
    (folder / 'model.json').write_bytes(b'\xff\xfe{}')
    with pytest.raises(CheckpointError, match='not a model folder'):
        read_model_folder(folder)


def test_a_description_that_is_a_pipe_does_not_hang(changed: Callable[..., Path]) -> None:
    folder = changed(('step',), 3)
    (folder / 'model.json').unlink()
    os.mkfifo(folder / 'model.json')
    with pytest.raises(CheckpointError) as caught:
        read_model_folder(folder)
    assert 'no regular file' in caught.value.why


PRETRAINED = {'type': 'vitdense.backbones.vit.ViT', 'name': 'vit_tiny_patch16_224', 'pretrained': True}


@pytest.mark.parametrize(
    ('location', 'value'),
    [
        ((*BACKBONE, 'pretrained'), True),
        ((*BACKBONE, 'pretrained'), '/etc/passwd'),
        (('transforms',), [PRETRAINED]),
        (('recipe', 'tiler'), PRETRAINED),
        ((*HEAD_PATH[:-1], 'adapter'), PRETRAINED),
    ],
)
def test_a_description_never_asks_for_other_weights(
    changed: Callable[..., Path], no_network: None, location: tuple, value: Any
) -> None:
    folder = changed(location, value)
    try:
        vitdense.load(folder, device='cpu')
    except VitDenseError:
        assert location[-1] != 'pretrained'


def test_nor_does_the_file_of_a_head(source: Path, tmp_path: Path, no_network: None) -> None:
    path = split_heads(source, tmp_path)[0]
    info = json.loads(path.read_text())
    info['branch']['adapter'] = PRETRAINED
    info['transforms'] = [PRETRAINED]
    path.write_text(json.dumps(info))
    head = read_head(path, 'det')
    assert head.branch['adapter']['pretrained'] is False and head.transforms[0]['pretrained'] is False


@pytest.fixture
def evil(tmp_path: Path) -> Callable[..., Path]:
    """Return a function: a checkpoint of a run whose content is changed."""
    (tmp_path / 'a.py').write_text(CONFIG)
    runner = make_trainer(load_config(tmp_path / 'a.py', SHORT), tmp_path / 'run', device='cpu')
    runner.train()
    content = torch.load(tmp_path / 'run' / 'step_000001.pth', weights_only=True)

    def write(**changes: Any) -> Path:
        torch.save({**content, **changes}, tmp_path / 'evil.pth')
        return tmp_path / 'evil.pth'

    write.content = content
    return write


def test_a_checkpoint_never_asks_for_other_weights(evil: Callable[..., Path], tmp_path: Path, no_network: None) -> None:
    text = evil.content['config'].replace("name='vit_tiny", "pretrained=True,name='vit_tiny")
    assert 'pretrained=True' in text
    omitted = {'network.backbone.model.cls_token': [0.0, 0.0]}
    (tmp_path / 'b.py').write_text(CONFIG.replace('sem=', 'two=').replace("head='sem'", "head='two'"))
    cfg = load_config(tmp_path / 'b.py', [*SHORT, "checkpoint.best='two/mIoU'"])
    cfg, _ = requested_head(cfg, 'two', str(evil(config=text, omitted_weights=omitted)))
    with pytest.raises(ConfigError, match='adds a head'):
        make_trainer(cfg, tmp_path / 'two', device='cpu')
    with pytest.raises(CheckpointError, match='builds on 1 pretrained tensors that it does not hold'):
        make_trainer(cfg, tmp_path / 'two', start=choose_start(cfg), device='cpu')
    cfg = load_config(tmp_path / 'a.py', ['+model.network.backbone.pretrained=True', *SHORT])
    with pytest.raises(CheckpointError, match='builds on 1 pretrained tensors'):  # and the config has no LoRA
        make_trainer(cfg, tmp_path / 'c', device='cpu', start=FromCheckpoint(torch.load(evil(omitted_weights=omitted))))


@pytest.mark.parametrize('text', [None, 3, 'x = ', 'model = 3', 'a\0b', '(' * 5000, 'model = dict(network=None)'])
def test_a_config_text_that_cannot_be_read(evil: Callable[..., Path], text: Any) -> None:
    with pytest.raises(CheckpointError):
        read_trained(evil(config=text))


def test_building_within_limits_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    plain = build(RECIPE, classes={'labels': ['a', 'b']}).state_dict()
    torch.manual_seed(0)
    with limit_tensors(plain, Path('model.json'), new=True):
        created = build(RECIPE, classes={'labels': ['a', 'b']}).state_dict()
    assert all(torch.equal(created[name], value) for name, value in plain.items())


def test_random_numbers_are_not_drawn_for_parameters_that_a_file_replaces() -> None:
    torch.manual_seed(0)
    wanted = torch.empty(1000).normal_()
    torch.manual_seed(0)
    with limit_tensors({'a': torch.zeros(10)}, Path('model.json')):
        torch.nn.Linear(30, 40)
        buffer = torch.empty(1000).normal_()
    assert torch.equal(buffer, wanted)  # what is no parameter is filled, with the first numbers of the generator


@pytest.mark.parametrize(
    'changes',
    [
        {'metainfo': 3},
        {'metainfo': {1: 2}},
        {'metainfo': torch.ones(2)},
        {'metainfo': {'classes': 'ab'}},
        {'metainfo': {'classes': {'semantic': 3}}},
        {'metainfo': {'classes': {'semantic': [1, 2]}}},
        {'metainfo': {'classes': {'semantic': ['a']}, 'palette': 3}},
        {'omitted_weights': 3},
        {'omitted_weights': {1: [0.0, 0.0]}},
        {'omitted_weights': {'a': 'x'}},
        {'state_dict': 3},
        {'state_dict': {}},
        {'state_dict': {1: torch.ones(1)}},
        {'state_dict': {'a': 3}, 5: 6},
    ],
)
def test_metadata_of_checkpoints_is_checked(evil: Callable[..., Path], changes: dict, tmp_path: Path) -> None:
    path = evil(**{key: value for key, value in changes.items() if isinstance(key, str)})
    if 5 in changes:  # keys of two kinds
        torch.save({**torch.load(path, weights_only=True), 5: 6}, path)
    with pytest.raises(CheckpointError) as caught:
        make_trainer(load_config(tmp_path / 'a.py', SHORT), tmp_path / 'b', start=FromWeights(path), device='cpu')
    assert caught.value.fix


def test_a_file_of_brackets_is_no_head(tmp_path: Path):
    (tmp_path / 'sem.json').write_text('[' * 100_000)
    assert not is_head_file(tmp_path / 'sem.json')


def test_names_too_long_for_a_file_are_missing_weights(changed: Callable[..., Path]):
    with pytest.raises(CheckpointError, match='the weights are missing'):
        read_model_folder(changed(('weights', 'file'), 'x' * 5000))
