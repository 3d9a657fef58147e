"""A published classifier is tested as it is: from its own file, and from the config alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import nn

from vitdense.commands.test import test as run_test
from vitdense.config.dump import dump_config
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError, ConfigError
from vitdense.inference.predictor import Predictor
from vitdense.types import ImageClass
from vitdense.visualize import draw

CONFIG = str(Path(__file__).parents[2] / 'configs/classification/original_vit_ti_imagenet.py')
SMALL = dict(depth=2, embed_dim=48, num_heads=3)
ELSEWHERE = 'n01440764'  # tench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random classifier of timm with 1000 classes, and six images: four lie in the folder of its prediction."""
    model = timm.create_model('vit_tiny_patch16_224', **SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.01, std=0.15)
    save_file(model.state_dict(), tmp_path / 'published.safetensors')
    generator = np.random.default_rng(0)
    for number in range(6):
        image = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((300, 240))
        best = int(logits_of_timm(tmp_path, [image])[0].argmax())
        wordnet_id = ImageNetInfo().index_to_label_name(best) if number < 4 else ELSEWHERE
        (tmp_path / 'val' / wordnet_id).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / 'val' / wordnet_id / f'{number}.png')
    return tmp_path


def logits_of_timm(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    model = timm.create_model('vit_tiny_patch16_224', checkpoint_path=str(folder / 'published.safetensors'), **SMALL)
    transform = create_transform(**resolve_data_config(model=model))
    with torch.no_grad():
        return model.eval()(torch.stack([transform(image) for image in images]))


def config_of(folder: Path, *options: str):
    small = ', '.join(f'{key}={value}' for key, value in SMALL.items())
    changes = [f'data_root={folder}', f'+model.network.backbone.timm_args=dict({small})', 'amp=off']
    return load_config(CONFIG, [*changes, 'test_dataloader.batch_size=4', *options], workers=0)


def test_the_file_of_timm_is_a_checkpoint_of_the_whole_model(folder, capsys):
    metrics = run_test(config_of(folder), folder / 'published.safetensors', out=folder / 'out', device='cpu')
    assert metrics['cls/top1'] == pytest.approx(4 / 6) and metrics['cls/top5'] >= 4 / 6
    printed = capsys.readouterr().out
    assert 'backbone: 100 % of' in printed and 'classifier: 100 % of' in printed
    assert json.loads((folder / 'out' / 'metrics.json').read_text()) == metrics
    assert (folder / 'out' / 'confusion_cls.png').exists()
    rows = json.loads((folder / 'out' / 'cls' / 'results.json').read_text())
    assert len(rows) == 6 and all(len(row['classes']) == 5 and row['scores'][0] >= row['scores'][1] for row in rows)
    names = ImageNetInfo().label_name_to_description
    right = [names(row['image_id'].split('/')[0]).startswith(row['classes'][0].split(' (')[0]) for row in rows]
    assert sum(right) == 4


def test_without_a_file_the_parts_bring_the_weights(folder):
    cfg = config_of(folder, f'model.network.backbone.pretrained={folder / "published.safetensors"}')
    metrics = run_test(cfg, None, out=folder / 'out', device='cpu')
    assert metrics['cls/top1'] == pytest.approx(4 / 6)


def test_a_model_with_a_random_head_needs_a_checkpoint(folder):
    cfg = config_of(folder, 'model.network.branches.cls.head.pretrained=False')
    with pytest.raises(ConfigError, match='random until it is trained'):
        run_test(cfg, None, out=folder / 'out', device='cpu')
    with pytest.raises(CheckpointError):
        run_test(cfg, folder / 'published.safetensors', out=folder / 'out', device='cpu')


def test_the_predictor_gives_names_and_scores(folder):
    dump_config(config_of(folder), folder / 'config.py')
    predictor = Predictor.from_config(folder / 'config.py', folder / 'published.safetensors', device='cpu', amp='off')
    file = sorted((folder / 'val').rglob('*.png'))[0]
    result = predictor(file)
    expected = logits_of_timm(folder, [Image.open(file)])[0].softmax(0)
    assert isinstance(result['cls'], ImageClass)
    torch.testing.assert_close(result['cls'].scores, expected, atol=2e-3, rtol=0.05)  # pixels are rounded
    names = list(result.summary()['cls'])
    assert len(names) == 1000 and names[0] in str(result)
    result.save(folder / 'prediction.jpg', legend=False)
    assert Image.open(folder / 'prediction.jpg').size == (300, 240)


def test_a_image_lists_the_likeliest_classes():
    metainfo = {'classes': {'image_label': ['ant', 'bee', 'cat']}}
    image = np.zeros((400, 400, 3), np.uint8)
    sure = draw(image, {'cls': ImageClass(torch.tensor([0.0, 1.0, 0.0]))}, metainfo)
    unsure = draw(image, {'cls': ImageClass(torch.tensor([0.3, 0.6, 0.1]))}, metainfo)
    written = [int((sheet[:, 400:] > 128).any((1, 2)).sum()) for sheet in (sure, unsure)]  # rows of pixels with letters
    assert 0 < 2 * written[0] < written[1]


@pytest.mark.slow
def test_real_weights_on_real_images(shared, tmp_path):
    cfg = load_config(CONFIG, [f'data_root={shared / "imagenette160"}', 'amp=off'], workers=0)
    path = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    metrics = run_test(cfg, path, out=tmp_path / 'out', device='cpu')
    assert metrics['cls/top1'] == pytest.approx(0.75, abs=0.02) and metrics['cls/top5'] > 0.9
