"""A classifier from folders of images to a predictor: train, test, resume the average, predict."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.commands.test import test as run_test
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.inference.predictor import load

CONFIG = """
from torch.optim import AdamW
from torchvision.transforms.v2 import RandomErasing, RandomResizedCrop
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.data.classification import ClassificationDataset
from vitdense.train.optim import LayerDecay
from vitdense.heads.classify import ClassHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.ops.mixing import ImageMixing
from vitdense.tasks.classification import ClassificationTask

amp = 'off'
data_root = 'data'
model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_tiny_patch16_224', img_size=32,
                      timm_args=dict(embed_dim=24, depth=2, num_heads=2)),
        branches=dict(cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='both'))),
    ),
    tasks=dict(cls=dict(type=ClassificationTask, label_smoothing=0.1)),
    augment=dict(type=ImageMixing, probability=0.5, erase=0.25),
)
train_dataloader = dict(batch_size=9, num_workers=0, dataset=dict(
    type=ClassificationDataset, folder='train', transforms=[
        dict(type=RandomResizedCrop, size=32, scale=(0.5, 1.0)), dict(type=RandomErasing, p=0.25)]))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(
    type=ClassificationDataset, folder='val', transforms=[dict(type=EvaluationCrop, size=32)]))
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy)]
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=3e-3, weight_decay=0.05), groups=dict(type=LayerDecay, decay=0.75))
schedule = dict(max_iters=30, val_interval=15, warmup_iters=3, decay='cosine')
checkpoint = dict(interval=30, keep=2, best='cls/top1', rule='greater')
ema = dict(momentum=0.2)
"""
COLORS = {'blue': (30, 40, 220), 'green': (30, 200, 40), 'red': (210, 30, 40)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name, color in COLORS.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                noise = generator.integers(-30, 30, (40, 60, 3))
                Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(folder / f'{number}.png')
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


def test_colours_are_learned_tested_and_predicted(root, capsys):
    cfg = load_config(root / 'config.py', [f'data_root={root}'])
    runner = train(cfg, work_dir=root / 'run', device='cpu')
    assert runner.train_loop.history.best['cls/top1'] == 1.0
    left = {path.name for path in (root / 'run').iterdir()}
    assert {'labels.jpg', 'predictions.jpg', 'curves.png', 'confusion_cls.png', 'best.pth', 'model'} <= left
    printed = capsys.readouterr().out
    assert 'could not be drawn' not in printed and 'images' in printed

    metrics = run_test(cfg, root / 'run' / 'best.pth', out=root / 'out', show_dir=root / 'shown', device='cpu')
    assert metrics == {key: runner.train_loop.history.best[key] for key in metrics} and metrics['cls/ece'] < 0.9
    shown = [Image.open(path).size for path in (root / 'shown').rglob('*.jpg')]
    # the square that was the input of the network, enlarged, and a legend: never stretched to the 60 x 40 of the file
    assert len(shown) == 9 and all(height == 320 and width > 320 for width, height in shown)

    predictor = load(root / 'run' / 'model', device='cpu', amp='off')
    for name in COLORS:
        result = predictor(root / 'val' / name / '0.png')
        assert next(iter(result.summary()['cls'])) == name and str(result).startswith(f'cls: {name} ')
        assert result.save(root / f'{name}.jpg').is_file()
