"""Fixtures for all tests. Real images and weights lie in `shared/` beside the checkout; else those tests skip."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch import multiprocessing as torch_processes

torch.set_num_threads(1)  # the suite is as fast as with more, and stays so on a machine that does other work as well
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Escape what cannot be encoded in captured output: processes of pytest-xdist send reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode('utf-8', 'backslashreplace').decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder `shared/data` beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('no shared/data beside the checkout')
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What a run does to the log of the process ends with its test: caplog handles a disabled logger in another way."""
    logger = logging.getLogger('vitdense')
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.level, logger.handlers[:] = before


def _rank(rank: int, size: int, folder: Path, function: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=size)
    torch.save(function(rank), folder / f'answer_{rank}.pt')
    if distributed.is_initialized():  # the function may have left the group itself
        distributed.barrier()
        distributed.destroy_process_group()


def start_ranks(folder: Path, function: Callable[[int], Any], size: int = 2, seconds: float = 360) -> list:
    """Run `function(rank)` in every process of a group that meets in `folder`; the results in order."""
    folder.mkdir()
    group = torch_processes.spawn(_rank, (size, folder, function), nprocs=size, join=False)
    deadline = time.monotonic() + seconds
    while not group.join(timeout=1):
        if time.monotonic() > deadline:
            for process in group.processes:
                process.kill()
            raise TimeoutError(f'{size} ranks did not end in {seconds} s')
    return [torch.load(folder / f'answer_{rank}.pt', weights_only=False) for rank in range(size)]


@pytest.fixture
def run_ranks(tmp_path, monkeypatch) -> Callable[..., list]:
    """Run `function(rank)` in every process of a group; the results in order. What fails in a rank fails the test."""
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    return partial(start_ranks, tmp_path / 'ranks')


CONFIG = """
from torch.optim import AdamW
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import RandomFlip
from vitdense.train.optim import LayerDecay
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
sample_images = 0
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
def trainer(config_file: Path, tmp_path: Path, one_thread: None) -> Callable[..., Any]:
    """Make a runner of the tiny config with `options`, working in `tmp_path / name`."""
    from vitdense.config.load import load_config
    from vitdense.multihead.add_head import choose_start
    from vitdense.train.build import make_trainer

    def make(
        name: str = 'run', options: tuple[str, ...] = (), *, checkpoint: Any = None, weights: Any = None, **arguments
    ) -> Any:
        cfg = load_config(config_file, options)
        start = choose_start(cfg, weights=weights, checkpoint=checkpoint)
        return make_trainer(cfg, tmp_path / name, start=start, device='cpu', **arguments)

    return make
