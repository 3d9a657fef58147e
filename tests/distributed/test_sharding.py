"""A sharded run trains, validates, saves and goes on as one process does, on any number of processes."""

from __future__ import annotations

import logging
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.conftest import CONFIG, start_ranks
from tests.distributed.log_lines import LogLines
from vitdense import load
from vitdense.checkpoints.resumable import read_resumable
from vitdense.checkpoints.run import checksum_matches, find_checkpoint, read_checkpoint, steps_in
from vitdense.checkpoints.shard_folder import fill_shards
from vitdense.checkpoints.trained import read_state, read_trained
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.distributed.sharding import gather, is_sharded
from vitdense.errors import CheckpointError
from vitdense.reporting.history import read_rows
from vitdense.storage.tensor_shards import local
from vitdense.train.build import make_trainer
from vitdense.train.start import FromCheckpoint

# without random numbers in the network, which each rank draws for its own images, and without batch norm
PLAIN = ('model.network.backbone.drop_path=0.0', 'model.network.backbone.timm_args.proj_drop_rate=0.0')
PLAIN += ('model.network.branches.sem.head.norm=layer', 'model.network.branches.sem.head.dropout=0.0')
PLAIN += ('schedule.max_iters=4', 'schedule.val_interval=2', 'checkpoint.interval=2', 'train_dataloader.batch_size=6')
# with clipping, layer-wise rates and averaging, as the config has them
HARD = ('optim_wrapper.accumulative_counts=2', '+model.network.backbone.checkpointing=True')
# images of 2 ranks and of one are the same; each rank draws its own denoising queries, and the stem has batch norms
DETECTOR = ('schedule.max_iters=4', 'schedule.val_interval=2', 'schedule.warmup_iters=1', 'checkpoint.interval=4')
DETECTOR += ('train_dataloader.batch_size=6', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0')
DETECTOR += ('train_dataloader.dataset.num_images=24', 'val_dataloader.dataset.num_images=5')
DETECTOR += ('model.network.backbone.stem=patch', '+model.network.backbone.checkpointing=True')
DETECTOR += ('model.network.branches.det.head.denoising=False', 'model.tasks.det.denoising=None')
DETECTOR += ('optim_wrapper.accumulative_counts=2',)

NETWORKS = {
    'eomt': """
from mmengine.config import read_base
with read_base():
    from vitdense.configs._base_.runtime import *
    from vitdense.configs._base_.eomt import *
from vitdense.tasks.mask_matching import MaskMatcher
model.network.backbone.update(name='vit_tiny_patch16_224', pretrained=False, img_size=64)
model.network.backbone.update(timm_args=dict(embed_dim=48, depth=4, num_heads=4))
model.network.update(num_queries=10, num_blocks=2)
model.tasks.sem.losses.update(matcher=dict(type=MaskMatcher, num_points=256), num_points=256)
""",
    'vit_adapter': """
from mmengine.config import read_base
with read_base():
    from vitdense.configs._base_.runtime import *
    from vitdense.configs._base_.upernet_vit_adapter import *
model.network.backbone.vit.update(name='vit_tiny_patch16_224', pretrained=False, drop_path=0.0, partial_weights=False)
model.network.backbone.vit.update(img_size=64, timm_args=dict(embed_dim=48, depth=4, num_heads=4, class_token=True))
model.network.backbone.update(drop_path=0.0, prior_channels=16, extra_extractors=0)
model.network.branches.sem.head.update(channels=16, aux_channels=16, dropout=0.0)
""",
}
SHAPES = """
from vitdense.data.shapes import ShapesScenes
from vitdense.metrics.miou import MeanIoU
model.tiler = None
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(
    type=ShapesScenes, num_images=16, size=64, split='train'))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type=ShapesScenes, num_images=3, size=64, split='val'))
val_evaluator = [dict(type=MeanIoU, head='sem')]
optim_wrapper.optimizer.update(lr=1e-3)
schedule = dict(max_iters=4, val_interval=4, warmup_iters=1)
checkpoint = dict(interval=4, keep=1)
sample_images = 0
"""


class Outcome(NamedTuple):
    """What a run ends with."""

    state: dict[str, Tensor]  # all weights, in the first rank
    held: int  # numbers of the model in this rank
    log: str


def run(folder: Path, name: str, *, resume: str = '', options: tuple[str, ...] = HARD) -> Outcome:
    """Train in `folder / name`, in this process or with all others of its group."""
    lines, log = LogLines(), logging.getLogger('vitdense')
    log.setLevel(logging.INFO)
    log.addHandler(lines)
    start = FromCheckpoint(read_resumable(folder / resume)) if resume else None
    cfg = load_config(folder / 'small.py', (*PLAIN, *options))
    runner = make_trainer(cfg, folder / name, device='cpu', start=start)
    runner.train()
    log.removeHandler(lines)
    model = runner.network_model
    held = sum(local(value).numel() for value in model.parameters())
    return Outcome(gather(model.state_dict()), held, '\n'.join(lines.lines))


def both(folder: Path, rank: int) -> dict[str, Outcome]:
    """The runs of two ranks."""
    sharded = (*HARD, 'parallel=fsdp')
    return {
        'two': run(folder, 'two', options=sharded),
        'on': run(folder, 'on', resume='two/step_000002.shards', options=sharded),
        'from_one': run(folder, 'from_one', resume='one/step_000002.pth', options=sharded),
        'halves': run(folder, 'halves', options=(*sharded, 'amp=bf16')),
        'copies': run(folder, 'copies', options=(*HARD, 'amp=bf16')),  # DDP
    }


def all_ways(config: str, options: tuple[str, ...], folder: Path, rank: int) -> dict[str, dict[str, Tensor]]:
    """The weights that a config ends with: DDP and FSDP, float32 and bfloat16."""
    kinds = [(parallel, amp) for parallel in ('ddp', 'fsdp') for amp in ('off', 'bf16')]
    return {
        f'{parallel} {amp}': weights_of(config, (*options, f'parallel={parallel}', f'amp={amp}'), folder)
        for parallel, amp in kinds
    }


def weights_of(config: str, options: tuple[str, ...], folder: Path) -> dict[str, Tensor]:
    """Train a config in a folder of its own, and return the weights."""
    runner = make_trainer(load_config(config, options), folder / '-'.join(options[-2:]), device='cpu')
    runner.train()
    return gather(runner.network_model.state_dict())


def command(folder: Path, rank: int) -> bool:
    """The whole command, in one rank of several, on a ViT with LoRA."""
    lora = "+model.network.backbone.lora=dict(type='vitdense.layers.lora.Lora', rank=2)"
    cfg = load_config(
        folder / 'small.py', (*PLAIN, 'parallel=fsdp', 'schedule.max_iters=2', 'val_dataloader=None', lora)
    )
    runner = train(cfg, work_dir=folder / 'command', device='cpu')
    return is_sharded(runner.network_model)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('sharded')
    (folder / 'small.py').write_text(CONFIG)
    return folder


@pytest.fixture(scope='module')
def runs(folder: Path) -> dict[str, Any]:
    """The same run by one process and by two, and resumed on both: outcomes of the first rank."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GLOO_SOCKET_IFNAME', 'lo')
        patch.setenv('OMP_NUM_THREADS', '1')
        one = run(folder, 'one')
        first, second = start_ranks(folder / 'ranks', partial(both, folder))
        alone = run(folder, 'alone', resume='two/step_000002.shards')
    torch.set_num_threads(before)
    return {**first, 'one': one, 'alone': alone, 'second': second['two']}


def furthest(one: Outcome, other: Outcome) -> float:
    return max((one.state[name] - other.state[name]).abs().max().item() for name in one.state)


def test_two_processes_that_share_a_model_train_as_one_does(runs, folder):
    assert furthest(runs['two'], runs['one']) < 1e-5
    total = sum(value.numel() for value in runs['one'].state.values())
    assert runs['two'].held < 0.6 * total and runs['two'].held + runs['second'].held == total
    rows = [read_rows(folder / name / 'metrics.csv') for name in ('one', 'two')]
    assert len(rows[0]) == len(rows[1]) == 6
    for one, two in zip(*rows, strict=True):  # losses, norms of gradients, and scores of three images on two ranks
        keys = [
            key
            for key in one
            if key not in ('steps_per_second', 'data_wait') and 'loss' not in key and 'acc' not in key
        ]
        assert {key: one[key] for key in keys} == pytest.approx({key: two[key] for key in keys}, abs=1e-5)


def test_bfloat16_is_that_of_ddp(runs):
    assert furthest(runs['halves'], runs['copies']) < 1e-5 < furthest(runs['halves'], runs['two'])


def gaps(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
    """Return the differences of all weights in one row."""
    return torch.cat([(value - second[name]).abs().flatten() for name, value in first.items()])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['detector', 'eomt', 'vit_adapter'])
def test_every_kind_of_network_trains_sharded_as_with_ddp(name, tmp_path, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    config, options = 'configs/quickstart/shapes_detection.py', DETECTOR
    if name != 'detector':
        config, options = str(tmp_path / f'{name}.py'), ()
        Path(config).write_text(NETWORKS[name] + SHAPES)
    two = start_ranks(tmp_path / 'ranks', partial(all_ways, config, options, tmp_path))[0]
    assert gaps(two['ddp off'], two['fsdp off']).max() < 1e-5
    # a weight that rounds to another bfloat16 changes later gradients, so equal to the bit they cannot be
    assert gaps(two['ddp bf16'], two['fsdp bf16']).mean() < 0.05 * gaps(two['ddp off'], two['fsdp bf16']).mean()
    if name == 'detector':  # the losses of the others are means over the images of a rank
        assert gaps(weights_of(config, (*options, 'amp=off'), tmp_path), two['fsdp off']).max() < 1e-5


def test_it_is_resumed_exactly_and_by_other_numbers_of_processes(runs):
    assert all(torch.equal(value, runs['on'].state[name]) for name, value in runs['two'].state.items())
    for name in ('alone', 'from_one'):
        assert furthest(runs[name], runs['one']) < 1e-5
    line = 'batches of 6 images, 2 of them summed: 12 an update, an update of 12 images as before'
    assert line in runs['alone'].log and '3 on each of 2 processes' in runs['alone'].log
    assert 'lr 0.001, 8.33e-05 for each image' in runs['alone'].log


def test_its_checkpoint_is_read_like_any_other(runs, folder):
    path = folder / 'two' / 'step_000004.shards'
    assert find_checkpoint(folder / 'two') == path and steps_in(folder / 'two')[0] == path and checksum_matches(path)
    ours, theirs = read_checkpoint(path), read_checkpoint(folder / 'one' / 'step_000004.pth')
    assert ours.keys() - {'shards'} == theirs.keys()
    for key in ('state_dict', 'training_state_dict'):
        assert ours[key].keys() == theirs[key].keys()
        assert all(torch.allclose(value, theirs[key][name], atol=1e-5) for name, value in ours[key].items())
    assert ours['optimizer']['state'].keys() == theirs['optimizer']['state'].keys()
    state, metadata = read_state(path)
    assert (
        metadata['step'] == 4
        and metadata['averaged']
        and all(map(torch.equal, state.values(), ours['state_dict'].values()))
    )
    assert read_trained(path).recipe is not None
    assert read_state(folder / 'two' / 'best.pth')[0].keys() == state.keys()  # gathered


def test_a_damaged_shard_is_noticed(runs, folder, tmp_path):
    path = shutil.copytree(folder / 'two' / 'step_000004.shards', tmp_path / 'run' / 'step_000004.shards')
    shutil.copytree(folder / 'two' / 'step_000002.shards', tmp_path / 'run' / 'step_000002.shards')
    shard = path / '__1_0.distcp'
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert not checksum_matches(path)
    assert find_checkpoint(tmp_path / 'run').name == 'step_000002.shards'
    with pytest.raises(CheckpointError, match='checksum mismatch'):
        read_checkpoint(path)


def test_the_description_of_shards_runs_no_code(runs, folder, tmp_path):
    path = shutil.copytree(folder / 'two' / 'step_000004.shards', tmp_path / 'step_000004.shards')

    class Command:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'executed',)

    (path / '.metadata').write_bytes(pickle.dumps(Command()))
    with pytest.raises(CheckpointError, match='cannot be read') as caught:
        fill_shards(read_checkpoint(path, lazy=True))
    assert 'would run code' in caught.value.why and not (tmp_path / 'executed').exists()


@pytest.mark.slow
def test_three_processes_finish_a_run_with_lora_and_leave_an_ordinary_model(folder, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    assert not start_ranks(folder / 'three', partial(command, folder), size=3)[0]
    predictor = load(folder / 'command' / 'model', device='cpu')
    assert not any('lora' in name for name in predictor.model.state_dict())
