"""`train.py --model MODEL --data FOLDER`: the model brings the architecture, the folder the classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.config.test_shipped_configs import small
from tests.convert.test_import_weights import HEAD, rf_pair
from tests.data.formats.test_labelled_folder import class_folders, masks
from tools.train import main
from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.projector import Projector
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.head_files import extract_head, save_head
from vitdense.checkpoints.model_config import config_from_model
from vitdense.checkpoints.model_folder import save_model_folder
from vitdense.checkpoints.trained import read_state
from vitdense.config.classes import metainfo_of
from vitdense.config.load import image_recipe, load_config
from vitdense.convert.import_weights import import_weights
from vitdense.errors import CheckpointError, ConfigError
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import load
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.storage.weights import save_weights
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.build import make_trainer
from vitdense.train.start import FromWeights

QUICK = ['--device', 'cpu', '--amp', 'off', '--workers', '0']
SHORT = [
    'schedule.max_iters=20',
    'schedule.warmup_iters=2',
    'schedule.val_interval=20',
    'train_dataloader.batch_size=2',
    'sample_images=0',
]
VIT = dict(type=ViT, name='vit_tiny_patch16_224', timm_args=dict(embed_dim=24, depth=2, num_heads=2))
CROP = dict(type='vitdense.data.transforms.evaluation_crop.EvaluationCrop', size=32)


def boxes(root: Path, names: list[str] = ('zebra', 'bolt', 'apple')) -> Path:
    """Write two images of 64 pixels with an object of every class, as Roboflow exports them, and return the folder."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for split in ('train', 'valid'):
        images = [{'id': row, 'file_name': f'{row}.png', 'height': 64, 'width': 64} for row in range(2)]
        objects = [
            {'id': 10 * row + k, 'image_id': row, 'category_id': 2 * k + 1, 'bbox': [8 * k, 8, 20, 20 + k], 'area': 400}
            | {'segmentation': [[8 * k, 8, 8 * k + 20, 8, 8 * k + 20, 28 + k]]}
            for row in range(2)
            for k in range(len(names))
        ]
        categories = [{'id': 2 * k + 1, 'name': name} for k, name in enumerate(names)]
        (root / split).mkdir(parents=True)
        for row in range(2):
            Image.fromarray(pixels).save(root / split / f'{row}.png')
        content = {'images': images, 'annotations': objects, 'categories': categories}
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    return root


def model_folder(folder: Path, *heads: str) -> Path:
    """Write a model folder with tiny heads of these kinds on one backbone."""
    parts = {
        'sem': (dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead)), dict(type=SemanticTask)),
        'cls': (
            dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='average')),
            dict(type=ClassificationTask),
        ),
    }
    network = dict(type=SharedNetwork, backbone=VIT, branches={name: parts[name][0] for name in heads})
    recipe = dict(type=DenseModel, network=network, tasks={name: parts[name][1] for name in heads})
    recipe = _dotted(recipe)
    classes = {'semantic': ['ground', 'sky'], 'image_label': ['cat', 'cow', 'dog']}
    model = build(recipe, classes=classes)
    save_model_folder(folder, recipe, model.state_dict(), metainfo={'classes': classes}, transforms=[CROP])
    return folder


def _dotted(value):
    if isinstance(value, dict):
        return {key: _dotted(item) for key, item in value.items()}
    return f'{value.__module__}.{value.__qualname__}' if isinstance(value, type) else value


@pytest.fixture(scope='module')
def rf_detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of RF-DETR with random weights of transformers, converted."""
    folder = tmp_path_factory.mktemp('rf_detr')
    torch.manual_seed(0)
    theirs, _ = rf_pair(5, 5)
    save_weights(folder / 'theirs.safetensors', theirs.state_dict())
    cfg = load_config('configs/detection/rf_detr_dinov2_s_coco_384.py')
    backbone = dict(cfg.model.network.backbone, windows=None, img_size=64)
    backbone['timm_args'] = dict(embed_dim=24, depth=3, num_heads=3)
    adapter = dict(type=Projector, layers=(0, 2), channels=32, num_blocks=2, norm_eps=1e-6)
    cfg.model.network.update(backbone=backbone, branches=dict(det=dict(adapter=adapter, head=dict(HEAD, num_levels=1))))
    cfg.model = _dotted(cfg.model)
    cfg.test_dataloader.dataset.transforms.resize.size = 64
    import_weights('rf-detr', [folder / 'theirs.safetensors'], cfg, folder / 'model', num_classes=5)
    return folder / 'model'


def test_converted_rf_detr_trains_on_three_classes_exports_loads_and_predicts(rf_detr: Path, tmp_path: Path) -> None:
    data, work = boxes(tmp_path / 'mine'), tmp_path / 'run'
    main(['--model', str(rf_detr), '--data', str(data), '--work-dir', str(work), *QUICK, '--cfg-options', *SHORT])
    predictor = load(work / 'model', device='cpu', amp='off')
    assert predictor.metainfo['classes'] == {'labels': ['zebra', 'bolt', 'apple']}
    assert predictor.metainfo['category_ids'] == {'labels': [1, 3, 5]}
    actual = predictor(torch.randint(0, 256, (3, 50, 80), dtype=torch.uint8))['det']
    assert set(actual.labels.tolist()) <= {0, 1, 2} and len(actual.scores) == 18  # 6 queries x 3 classes
    assert predictor.model.network.heads['det'].decoder.class_predictors[0].weight.shape[0] == 3

    again = load_config(work / 'config.py')
    assert again.train_dataloader.dataset.transforms.resize.square is True  # as it is evaluated
    assert again.train_dataloader.dataset.transforms.resize.sizes == (64, 64, 64, 64)
    first, _ = config_from_model(rf_detr, data, options=['amp=off', *SHORT], workers=0)
    assert {**again, 'work_dir': ''} == {**first, 'work_dir': ''}
    runner = make_trainer(again, tmp_path / 'again', start=FromWeights(rf_detr), device='cpu')
    state, trained = runner.network_model.state_dict(), read_state(rf_detr)[0]
    assert all(torch.equal(state[name], trained[name]) for name in state if 'class_predictors' not in name)


@pytest.mark.parametrize('source', ['.', 'model', 'best.pth', 'moved'])
def test_a_run_brings_the_training_of_its_config(tmp_path: Path, source: str, monkeypatch) -> None:
    class_folders(tmp_path / 'first'), class_folders(tmp_path / 'second')
    (tmp_path / 'second' / 'train' / 'cat').rename(tmp_path / 'second' / 'train' / 'ant')
    (tmp_path / 'second' / 'val' / 'cat').rename(tmp_path / 'second' / 'val' / 'ant')
    options = [
        'schedule.max_iters=1',
        'schedule.val_interval=1',
        'schedule.warmup_iters=0',
        'train_dataloader.batch_size=2',
        'sample_images=0',
    ]
    options += ['optim_wrapper.optimizer.lr=0.003', 'train_dataloader.dataset.transforms.crop.size=32']
    run, model = tmp_path / 'run', str(model_folder(tmp_path / 'start', 'cls'))
    main(
        ['--model', model, '--data', str(tmp_path / 'first'), '--work-dir', str(run), *QUICK, '--cfg-options', *options]
    )
    path = run / source
    if source == 'moved':
        path = (run / 'best.pth').rename(tmp_path / 'moved.pth')
    cfg, weights = config_from_model(path, tmp_path / 'second')
    assert cfg.optim_wrapper.optimizer.lr == 0.003 and cfg.train_dataloader.batch_size == 2
    assert cfg.work_dir == 'work_dirs/second' and cfg.data_root == str(tmp_path / 'second')
    assert metainfo_of(cfg)['classes'] == {'image_label': ['ant', 'dog']}
    state = make_trainer(cfg, tmp_path / 'next', start=FromWeights(weights), device='cpu').network_model.state_dict()
    trained = read_state(path)[0] if source != '.' else read_state(run / 'best.pth')[0]
    name = 'network.heads.cls.classifier.weight'
    assert torch.equal(state[name][1], trained[name][1])  # the row of dog
    assert all(torch.equal(state[name], trained[name]) for name in state if 'classifier' not in name)


def test_a_head_file_stands_for_its_head_on_the_backbone_beside_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / 'model', 'sem', 'cls')
    model, info = load(folder, device='cpu').model, json.loads((folder / 'model.json').read_text())
    parts = dict(recipe=info['recipe'], state=model.state_dict(), metainfo=info, transforms=info['transforms'])
    head = save_head(folder / 'heads', extract_head(model, 'cls', **parts))
    class_folders(tmp_path / 'data')
    cfg, weights = config_from_model(head, tmp_path / 'data')
    assert list(cfg.model.tasks) == ['cls'] and weights == str(head)
    state = make_trainer(cfg, tmp_path / 'run', start=FromWeights(weights), device='cpu').network_model.state_dict()
    name = 'network.heads.cls.classifier.weight'
    assert torch.equal(state[name], model.state_dict()[name][[0, 2]])  # cat and dog of cat, cow and dog
    alone = Path(save_head(tmp_path / 'elsewhere', extract_head(model, 'cls', **parts)))
    (tmp_path / 'model').rename(tmp_path / 'other')
    with pytest.raises(CheckpointError, match='is not beside it'):
        config_from_model(alone, tmp_path / 'data')


@pytest.mark.parametrize(
    ('heads', 'message'), [(['cls'], 'no head for segmentation'), (['sem', 'cls'], 'the model has 2 heads')]
)
def test_the_model_needs_one_head_of_the_task_of_the_folder(tmp_path: Path, heads: list[str], message: str) -> None:
    masks(tmp_path / 'data')
    with pytest.raises(ConfigError, match=message):
        config_from_model(model_folder(tmp_path / 'model', *heads), tmp_path / 'data')


def test_sizes_of_training_follow_those_of_evaluation(tmp_path: Path) -> None:
    masks(tmp_path / 'data')
    folder = model_folder(tmp_path / 'model', 'sem')
    info = json.loads((folder / 'model.json').read_text())
    resize = dict(type='vitdense.data.transforms.common.ResizeShortSide', size=256)
    tiler = dict(type='vitdense.test_time.sliding_window.Tiler', size=128, stride=64)
    info.update(transforms=[resize], recipe=info['recipe'] | {'tiler': tiler})
    (folder / 'model.json').write_text(json.dumps(info))
    cfg, _ = config_from_model(folder, tmp_path / 'data')
    steps = cfg.train_dataloader.dataset.transforms
    assert steps.resize.scale == (1024, 256) and steps.crop.size == 128
    assert [step.size for step in cfg.val_dataloader.dataset.transforms] == [256]
    assert cfg.val_evaluator[0].head == 'sem' and cfg.checkpoint.best == 'sem/mIoU'
    info['transforms'] = []  # images are evaluated at their own size
    (folder / 'model.json').write_text(json.dumps(info))
    assert list(config_from_model(folder, tmp_path / 'data')[0].train_dataloader.dataset.transforms) == [
        'crop',
        'flip',
        'color',
    ]


@pytest.mark.parametrize(
    ('config_name', 'write', 'names'),
    [
        ('semantic/eomt_dinov2_l_ade20k', masks, ['ground', 'road']),
        ('semantic/linear_dinov2_s_ade20k', masks, ['ground', 'road']),
        ('semantic/upernet_vitadapter_deit_t_ade20k', masks, ['ground', 'road']),
        ('detection/eomt_dinov2_l_coco_640', boxes, ['zebra', 'bolt', 'apple']),
        ('detection/lw_detr_tiny_coco', boxes, ['zebra', 'bolt', 'apple']),
        ('detection/dino_mae_b_coco_12ep', boxes, ['zebra', 'bolt', 'apple']),
        ('classification/finetuned_mae_b_imagenet', class_folders, ['cat', 'dog']),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_every_kind_of_published_model_trains_on_other_classes(tmp_path: Path, config_name: str, write, names) -> None:
    cfg = small(f'configs/{config_name}.py', tmp_path)
    classes = dict.fromkeys(('labels', 'semantic', 'image_label'), ['zebra', 'road', 'cat', 'sky'])
    model, transforms = build(cfg.model, classes=classes), image_recipe(cfg)['transforms']
    save_model_folder(
        tmp_path / 'm', cfg.model, model.state_dict(), metainfo={'classes': classes}, transforms=transforms
    )
    write(tmp_path / 'data')
    options = ['train_dataloader.batch_size=2', 'sample_images=0', 'seed=1']
    cfg, weights = config_from_model(tmp_path / 'm', tmp_path / 'data', options=options, workers=0)
    runner = make_trainer(cfg, tmp_path / 'run', start=FromWeights(weights), device='cpu')
    assert list(runner.network_model.head_classes.values()) == [names]


def test_plain_weights_do_not_describe_a_model(tmp_path: Path) -> None:
    masks(tmp_path / 'data')
    save_weights(tmp_path / 'plain.safetensors', {'a': torch.zeros(1)})
    with pytest.raises(ConfigError, match='nothing says of which architecture') as caught:
        config_from_model(tmp_path / 'plain.safetensors', tmp_path / 'data')
    assert 'import_weights.py' in caught.value.fix


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'neither CONFIG nor --model'),
        (['--model', 'm'], 'add --data FOLDER'),
        (['config.py', '--model', 'm', '--data', 'd'], 'both say what the model is'),
        (['--model', 'm', '--data', 'd', '--weights', 'w'], '--model brings the weights'),
    ],
)
def test_config_and_model_exclude_each_other_and_one_is_needed(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(words)
