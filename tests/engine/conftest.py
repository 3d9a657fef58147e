"""A run small enough for tests: a ViT of two blocks on drawn scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vitdense.engine.assembly import make_trainer
from vitdense.engine.config import load_config
from vitdense.engine.runner import DenseRunner

CONFIG = """
from torch.optim import AdamW
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms import RandomFlip
from vitdense.engine.optim import LayerDecay
from vitdense.heads.linear import LinearHead
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask

seed = 0
amp = 'off'
model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_tiny_patch16_224', patch_size=16, img_size=64, drop_path=0.2,
                      timm_args=dict(embed_dim=24, depth=2, num_heads=2, proj_drop_rate=0.1)),
        branches=dict(sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='batch', dropout=0.1))),
    ),
    tasks=dict(sem=dict(type=SemanticTask)),
)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type=ShapesScenes, num_images=11, size=64, split='train', transforms=[dict(type=RandomFlip)]))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type=ShapesScenes, num_images=3, size=64, split='val'))
test_dataloader = val_dataloader
val_evaluator = [dict(type=MeanIoU, head='sem')]
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-3, weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.5),
    clip_grad=dict(max_norm=1.0),
)
schedule = dict(max_iters=8, val_interval=4, warmup_iters=1)
checkpoint = dict(interval=4, keep=2, best='sem/mIoU', rule='greater')
ema = dict(momentum=0.1)
sample_pictures = 0
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The config of a tiny run, as a file."""
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute on one thread: the tiny network is slower on more."""
    before = torch.get_num_threads()
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainer(config_file: Path, tmp_path: Path, one_thread: None) -> Callable[..., DenseRunner]:
    """Make a runner of the tiny config with `options`, working in `tmp_path / name`."""

    def make(name: str = 'run', options: tuple[str, ...] = (), **arguments) -> DenseRunner:
        return make_trainer(load_config(config_file, options), tmp_path / name, device='cpu', **arguments)

    return make
