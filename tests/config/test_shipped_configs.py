"""Every config builds, trains one step and predicts with a tiny ViT in its place, and survives a dump and a reload."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.config.dump import dump_config
from vitdense.config.load import load_config, named_sections
from vitdense.data.collate import collate
from vitdense.data.datasets import build_dataset
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.types import ImageClass, Instances, Reconstruction, SemanticMap

ROOT = Path(__file__).resolve().parents[2]
CONFIG_NAMES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py') if not {'_base_'} & set(path.parts)
)
CONFIG_NAMES = [config_name for config_name in CONFIG_NAMES if not config_name.endswith('__init__.py')]


def shrink(transforms: dict[str, dict], sizes: dict[str, dict]) -> None:
    """Give the named transforms small sizes."""
    for transform in transforms.values():
        kind = transform['type'] if isinstance(transform['type'], str) else transform['type'].__name__
        transform.update(sizes.get(kind.rsplit('.')[-1], {}))


def write_pair(root: Path, dataset: dict, height: int = 48, width: int = 64) -> None:
    """Write one image and its labels where `dataset` looks for them, and let it make small images."""
    generator = np.random.default_rng(0)
    for folder in (root / dataset['images'], root / dataset['labels']):
        folder.mkdir(parents=True, exist_ok=True)
    image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / dataset['images'] / 'one.jpg')
    labels = generator.integers(0, 4, (height, width), dtype=np.uint8)
    Image.fromarray(labels).save(root / dataset['labels'] / 'one.png')
    small = {name: dict(size=(128, 128)) for name in ('RandomCrop', 'Pad')} | {'ResizeShortSide': dict(size=128)}
    shrink(dataset.get('transforms', {}), small | {'RandomResize': dict(scale=(512, 128))})


def write_folders(root: Path, dataset: dict) -> None:
    """Write images of two classes where `dataset` looks for them, and let it cut small squares."""
    for shade, class_id in enumerate(['n01440764', 'n03000684']):
        folder = root / dataset['folder'] / class_id
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64, 48), (100 * shade, 50, 200)).save(folder / 'one.jpg')
    next(iter(dataset['transforms'].values()))['size'] = 112  # a multiple of patches of 14 and of 16


def write_coco(root: Path, dataset: dict) -> None:
    """Write an image with two objects where `dataset` looks for it, and let it make small images."""
    generator = np.random.default_rng(0)
    (root / dataset['images']).mkdir(parents=True, exist_ok=True)
    (root / dataset['annotations']).parent.mkdir(parents=True, exist_ok=True)
    image = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / dataset['images'] / 'one.jpg')
    boxes = [[4, 6, 20, 30], [30, 10, 25, 25]]
    content = {
        'images': [{'id': 7, 'file_name': 'one.jpg', 'height': 48, 'width': 64}],
        'categories': [{'id': number, 'name': f'class {number}'} for number in (1, 3, 9)],
        'annotations': [
            {
                'id': row,
                'image_id': 7,
                'category_id': 3**row,
                'bbox': box,
                'area': box[2] * box[3],
                'iscrowd': 0,
                'segmentation': [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]],
            }
            for row, box in enumerate(boxes, start=1)
        ],
    }
    (root / dataset['annotations']).write_text(json.dumps(content))
    small = {'MultiScaleCrop': dict(sizes=[64], before=[64], crop=(48, 64)), 'ResizeShortSide': dict(size=64)}
    shrink(dataset['transforms'], small | {name: dict(size=64) for name in ('ResizeTo', 'LargeScaleJitter', 'Pad')})


def writer_of(dataset: dict):
    return write_folders if 'folder' in dataset else write_coco if 'annotations' in dataset else write_pair


def recipes_of(*sections: dict) -> list[dict]:
    """Return the recipes of all data sets, those of mixtures and of several validation sets one by one."""
    recipes = [each['dataset'] for section in sections for each in named_sections(section).values()]
    return [part for recipe in recipes for part in recipe.get('datasets', {'': recipe}).values()]


def small(config_name: str, root: Path):
    """Load a config and put a tiny random ViT of the same family and depth into it."""
    cfg = load_config(str(ROOT / config_name))
    backbone = cfg.model.network.backbone
    vit = backbone.get('vit', backbone)
    if 'quickstart' not in config_name:
        vit.pretrained = False
        width = 48 if vit is backbone else 96  # what 16 heads of an adapter divide, and half of it
        vit.timm_args = dict(vit.get('timm_args') or {}, embed_dim=width, num_heads=3)
        for recipe in recipes_of(cfg.train_dataloader, cfg.val_dataloader):
            project = root / recipe.get('root', '')
            writer_of(recipe)(project, recipe)
            (project / 'classes.txt').write_text('sky\nbuilding\nroad\ntree\n')
        for branch in cfg.model.network.get('branches', {}).values():
            branch.head.pop('pretrained', None)
            if 'UPerNet' in str(branch.head.type):
                branch.head.update(channels=32, aux_channels=16)
            if 'Detr' in str(branch.head.type):  # as many options, fewer queries
                branch.head.update(num_queries=20, ffn_dim=32, **({'groups': 2} if 'groups' in branch.head else {}))
        if cfg.model.get('tiler'):
            cfg.model.tiler.update(size=128, stride=85)  # still several windows
        cfg.data_root = str(root)
    return cfg


@pytest.mark.parametrize('config_name', CONFIG_NAMES)
def test_config_builds_trains_and_predicts(config_name: str, tmp_path: Path) -> None:
    cfg = small(config_name, tmp_path)
    train = build_dataset(cfg.train_dataloader.dataset, root=cfg.get('data_root'))
    sections = named_sections(cfg.val_dataloader).values()
    vals = [build_dataset(section.dataset, root=cfg.get('data_root'))[0] for section in sections]
    model = build(cfg.model, classes=train.metainfo['classes'])

    model.train()
    firsts = [0, *getattr(train, 'ends', [0])[:-1]]  # one of each part of a mixture
    batch = model.data_preprocessor(collate([train[row] for row in (*firsts, 0)]), True)
    loss, log = model.parse_losses(model(*batch, mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)

    model.eval()
    with torch.inference_mode():
        for val in vals:
            (predictions,) = model.val_step(collate([val]))
            check_predictions(predictions, model, val.meta.orig_size)


def check_predictions(predictions: dict, model: DenseModel, size: tuple[int, int]) -> None:
    """Every task gives a prediction in the original `size` of the image."""
    assert predictions and set(predictions) == set(model.tasks)
    for head, prediction in predictions.items():
        if isinstance(prediction, ImageClass):
            assert tuple(prediction.scores.shape) == (len(model.head_classes[head]),)
        if isinstance(prediction, SemanticMap):
            assert tuple(prediction.labels.shape) == tuple(size)
        if isinstance(prediction, Reconstruction):
            assert tuple(prediction.image.shape[1:]) == tuple(prediction.mask.shape) == tuple(size)
        if isinstance(prediction, Instances):
            assert len(prediction.boxes) and prediction.boxes.isfinite().all() and prediction.boxes.max() <= max(size)


@pytest.mark.parametrize('config_name', CONFIG_NAMES)
def test_config_survives_dump_and_reload(config_name: str, tmp_path: Path) -> None:
    cfg = load_config(str(ROOT / config_name))
    dump_config(cfg, tmp_path / 'first.py')
    dump_config(load_config(str(tmp_path / 'first.py')), tmp_path / 'second.py')
    assert (tmp_path / 'first.py').read_text() == (tmp_path / 'second.py').read_text()


@pytest.mark.parametrize('config_name', CONFIG_NAMES)
def test_config_is_tested_as_it_is_validated(config_name: str) -> None:
    cfg = load_config(str(ROOT / config_name))
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    sections = [named_sections(cfg[key]).values() for key in ('val_dataloader', 'test_dataloader')]
    val, test = [[section.dataset for section in each] for each in sections]
    assert all(one is not other for one, other in zip(val, test, strict=True))


def test_no_config_repeats_a_section() -> None:
    """An absent test section is that of validation, also after a config has changed the latter."""
    for path in (ROOT / 'configs').rglob('*.py'):
        assert 'test_dataloader =' not in path.read_text() and 'test_evaluator =' not in path.read_text(), path


@pytest.mark.parametrize('config_name', CONFIG_NAMES)
def test_docstrings_have_the_command_and_the_aim(config_name: str) -> None:
    text = (ROOT / config_name).read_text()
    docstring = text.split('"""')[1]
    assert f'python tools/train.py {config_name}' in docstring
    assert 'Aims at' in docstring or 'No published number' in docstring


@pytest.mark.parametrize(('family', 'weight'), [('deformable', 2.0), ('dino', 1.0), ('lw_detr', 1.0), ('rf_detr', 1.0)])
def test_detectors_weigh_the_class_loss_as_published(family: str, weight: float) -> None:
    """2 in Deformable-DETR's own code, 1 in those of DINO and LW-DETR."""
    config_names = [
        config_name for config_name in CONFIG_NAMES if config_name.startswith(f'configs/detection/{family}_')
    ]
    assert config_names
    for config_name in config_names:
        task = build(load_config(str(ROOT / config_name)).model.tasks.det, num_classes=80)
        assert task.classification.weight == weight, config_name
        assert (task.l1_weight, task.giou_weight) == (5.0, 2.0), config_name
