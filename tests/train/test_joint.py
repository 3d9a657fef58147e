"""Joint training: tasks do not disturb each other, ranks may lack labels, and several validation sets share a loop."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.memory import _Step
from vitdense.commands.test import test as evaluate
from vitdense.commands.worst_case import worst_batch
from vitdense.config.load import load_config
from vitdense.errors import ConfigError
from vitdense.layers.loss_weights import UncertaintyWeights
from vitdense.multihead.add_head import choose_start
from vitdense.reporting.history import read_rows
from vitdense.train.build import make_trainer
from vitdense.train.hooks.task_gradients import task_gradients
from vitdense.train.runner import DenseRunner

CONFIG = """
from torch.optim import AdamW
from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.pyramid import SimplePyramid
from vitdense.backbones.vit import ViT
from vitdense.data.mixture import Mixture
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import RandomFlip
from vitdense.train.optim import LayerDecay
from vitdense.heads.classify import ClassHead
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.queries import QuerySelection
from vitdense.heads.linear import LinearHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.semantic import SemanticTask

seed = 0
amp = 'off'
model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_tiny_patch16_224', patch_size=16, img_size=64,
                      timm_args=dict(embed_dim=24, depth=2, num_heads=2)),
        branches=dict(
            sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='none')),
            det=dict(adapter=dict(type=SimplePyramid, channels=16), head=dict(
                type=DeformableDetrHead, channels=16, num_levels=4, num_queries=6, ffn_dim=16, num_heads=2,
                num_encoder_layers=0, num_decoder_layers=1, dropout=0.0, selection=dict(type=QuerySelection))),
            cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead)),
        ),
    ),
    tasks=dict(
        sem=dict(type=SemanticTask, datasets=('maps',)),
        det=dict(type=DetectionTask, datasets=('boxes',)),
        cls=dict(type=ClassificationTask, datasets=('labels',)),
    ),
)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type=Mixture,
    datasets=dict(
        maps=dict(type=ShapesScenes, num_images=5, size=64, transforms=[dict(type=RandomFlip)]),
        boxes=dict(type=ShapesScenes, num_images=7, size=64),
        labels=dict(type=ShapesScenes, num_images=3, size=64),
    ),
    weights=dict(maps=2, boxes=1, labels=1),
))
val_dataloader = dict(
    maps=dict(batch_size=2, num_workers=0, dataset=dict(type=ShapesScenes, num_images=3, size=64, split='val')),
    boxes=dict(batch_size=1, num_workers=0, dataset=dict(type=ShapesScenes, num_images=2, size=64, split='val')),
    labels=dict(batch_size=2, num_workers=0, dataset=dict(type=ShapesScenes, num_images=5, size=64, split='val')),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    maps=[dict(type=MeanIoU, head='sem')],
    boxes=[dict(type=CocoAP, head='det')],
    labels=[dict(type=Accuracy, head='cls')],
)
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3, weight_decay=0.05), groups=dict(type=LayerDecay))
schedule = dict(max_iters=6, val_interval=6, decay='constant')
checkpoint = dict(interval=6, keep=2, best=('sem/mIoU', 'cls/top1'), rule='greater')
sample_images = 0
"""
FROZEN = 'model.network.backbone.frozen=True'


@pytest.fixture
def joint(tmp_path: Path, one_thread: None) -> Callable[..., DenseRunner]:
    """Make a runner of the joint config with `options`; `only` leaves one task of it."""
    (tmp_path / 'joint.py').write_text(
        CONFIG.replace('backbone=dict(type=ViT,', 'backbone=dict(type=ViT, frozen=False,')
    )
    return partial(_runner, tmp_path)


def _runner(folder: Path, name: str = 'run', options: tuple[str, ...] = (), only: str = '', **arguments) -> DenseRunner:
    cfg = load_config(folder / 'joint.py', options)
    if only:
        for parts in (cfg.model.tasks, cfg.model.network.branches):
            for other in [task for task in parts if task != only]:
                del parts[other]
        cfg.val_dataloader = cfg.val_evaluator = None
    return make_trainer(cfg, folder / name, start=choose_start(cfg, **arguments), device='cpu')


def losses_of(folder: Path, task: str = '') -> list[dict[str, float]]:
    rows = [row for row in read_rows(folder / 'metrics.csv') if 'loss' in row]
    return [{key: row[key] for key in row if key.startswith(f'{task}.loss_')} for row in rows]


@pytest.mark.parametrize('batches', ['mixed', 'homogeneous'])
def test_on_a_frozen_backbone_each_task_learns_as_if_it_were_alone(joint, tmp_path, batches):
    options = (FROZEN, f'+train_dataloader.dataset.batches={batches}', 'train_dataloader.batch_size=4')
    runner = joint('all', (*options, 'val_dataloader=None'))
    start = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    whole = runner.model.state_dict()
    for task in ('sem', 'det', 'cls'):
        alone = joint(task, options, only=task)
        alone.model.load_state_dict({name: start[name] for name in alone.model.state_dict()})
        alone.train()
        rows = losses_of(tmp_path / 'all', task), losses_of(tmp_path / task, task)
        assert len(rows[0]) == len(rows[1]) == 6
        for ours, theirs in zip(*rows, strict=True):
            if all(value is None for value in ours.values()):  # a batch without labels has no losses in the joint log
                assert not any(theirs.values())
            else:
                assert ours == pytest.approx(theirs, abs=1e-5)
        assert any(value for row in rows[0] for value in row.values())
        state = alone.model.state_dict()
        assert all(torch.allclose(whole[name], value, atol=1e-5) for name, value in state.items())


BY_ADAMW = ('val_dataloader=None', 'train_dataloader.dataset.weights.labels=0')
BY_SGD = ('val_dataloader=None', 'optim_wrapper.optimizer.type=torch.optim.SGD')
LEARNED = "+model.loss_weights=dict(type='vitdense.layers.loss_weights.UncertaintyWeights')"


def _two(folder: Path, rank: int) -> list[dict[str, torch.Tensor]]:
    actual = []
    for name, options in (('two', BY_SGD), ('learned', (*BY_SGD, LEARNED)), ('resting', (*BY_ADAMW, LEARNED))):
        runner = _runner(folder, name, (*options, 'train_dataloader.batch_size=4'))  # two images on each rank
        runner.train()
        actual.append({key: value.clone() for key, value in runner.network_model.state_dict().items()})
    return actual


def test_two_ranks_of_which_one_lacks_labels_equal_one_process_with_both_batches(joint, tmp_path, run_ranks):
    wholes = []
    for options in (BY_SGD, (*BY_SGD, LEARNED)):
        one = joint('one', (*options, 'train_dataloader.batch_size=4'))
        start = {name: value.clone() for name, value in one.model.state_dict().items()}
        one.train()
        wholes.append(one.model.state_dict())
        assert any(not torch.allclose(start[name], value, atol=1e-4) for name, value in wholes[-1].items())
    mixture = one.train_dataloader.dataset.dataset.dataset
    lacking = set()
    for rank in range(2):
        samples = mixture.sampler(batch_size=2, seed=0, rank=rank, world_size=2)
        names = [mixture[draw.index].meta.dataset for draw in itertools.islice(samples, 12)]
        lacking |= {name for start in range(0, 12, 2) for name in mixture.datasets if name not in names[start:][:2]}
    assert lacking == {'maps', 'boxes', 'labels'}  # for each task some rank lacks labels in some step
    first, second = run_ranks(partial(_two, tmp_path))
    for mine, theirs in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name, value in start.items():  # without labels anywhere, not even momentum and weight decay move a head
        assert torch.equal(first[2][name], value) == ('.cls.' in name), name
    for whole, mine in zip(wholes, first, strict=False):
        assert all(torch.allclose(mine[name], whole[name], atol=1e-5, rtol=1e-5) for name in whole)


@pytest.mark.parametrize('batches', ['mixed', 'homogeneous'])
def test_a_mixture_is_resumed_exactly(joint, tmp_path, batches):
    options = (f'+train_dataloader.dataset.batches={batches}', 'schedule.val_interval=3', 'checkpoint.interval=3')
    options = (*options, 'train_dataloader.num_workers=1')
    joint('whole', options).train()
    content = read_checkpoint(tmp_path / 'whole' / 'step_000003.pth')
    joint('parts', options, checkpoint=content).train()
    whole, parts = (read_checkpoint(tmp_path / name / 'step_000006.pth') for name in ('whole', 'parts'))
    assert whole['samples_seen'] == parts['samples_seen'] == 12
    assert all(torch.equal(value, parts['state_dict'][name]) for name, value in whole['state_dict'].items())
    assert losses_of(tmp_path / 'whole')[3:] == losses_of(tmp_path / 'parts')
    assert whole['best'] == parts['best'] or whole['best']['step'] == 3


def test_one_loop_scores_every_set_with_its_own_metric_and_the_mean_decides(joint, tmp_path):
    runner = joint('run', ('schedule.val_interval=2', 'sample_images=2'))
    runner.train()
    rows = [row for row in read_rows(tmp_path / 'run' / 'metrics.csv') if 'sem/mIoU' in row]
    assert [row['step'] for row in rows] == [2, 4, 6] and all({'det/AP', 'cls/top1'} <= set(row) for row in rows)
    means = [(row['sem/mIoU'] + row['cls/top1']) / 2 for row in rows]
    best = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['best']
    assert best['step'] == rows[means.index(max(means))]['step']  # the first of the largest
    assert read_checkpoint(tmp_path / 'run' / 'best.pth')['step'] == best['step']
    assert len(runner.val_dataloader) == 2 + 2 + 3 and len(runner.val_dataloader.dataset) == 10
    assert (tmp_path / 'run' / 'predictions.jpg').exists()

    scores = evaluate(load_config(tmp_path / 'joint.py'), tmp_path / 'run/best.pth', out=tmp_path / 'out', device='cpu')
    assert scores['sem/mIoU'] == pytest.approx(best['sem/mIoU']) and scores['det/AP'] == best['det/AP']
    assert len(list((tmp_path / 'out/maps/sem').glob('*.png'))) == 3
    assert len(json.loads((tmp_path / 'out/labels/cls/results.json').read_text())) == 5


def test_two_sets_of_one_head_keep_their_scores_apart(joint, tmp_path):
    text = CONFIG.replace("boxes=[dict(type=CocoAP, head='det')]", "boxes=[dict(type=MeanIoU, head='sem')]")
    (tmp_path / 'joint.py').write_text(text.replace("best=('sem/mIoU', 'cls/top1')", "best='maps/sem/mIoU'"))
    runner = joint('run', ('schedule.max_iters=2',))
    runner.train()
    assert {'maps/sem/mIoU', 'boxes/sem/mIoU', 'cls/top1'} <= set(runner.train_loop.history.metrics)


def test_what_does_not_fit_is_refused_at_the_start(joint, tmp_path):
    for options, message in (
        (('checkpoint.best=("sem/mIoU", "det/AQ")',), "= 'det/AQ'"),
        (('+val_evaluator.more=[]',), 'val_evaluator does not fit'),
        (('val_evaluator=[]',), 'val_evaluator does not fit'),
        (('+val_dataloader.maps.batchsize=2',), "unknown key 'val_dataloader.maps.batchsize'"),
        (('val_dataloader.maps.batch_size=0',), 'val_dataloader.maps.batch_size is 0'),
        (('+model.loss_weights=dict(dot=2)',), "did you mean 'det'"),
    ):
        with pytest.raises(ConfigError, match=message):
            joint('run', options)


def test_a_dry_run_on_one_image_has_all_branches(joint):
    runner = joint('run')
    wrapper = runner.optim_wrapper
    batch = worst_batch(runner.train_dataloader.dataset.dataset, 2)
    assert _Step(runner, wrapper, batch).measure(1).peak > 0
    assert all(parameter in wrapper.optimizer.state for parameter in wrapper.parameters)  # its image has one label
    assert runner.network_model.skip_unlabelled


def test_weights_scale_the_sum_and_not_the_log(joint, tmp_path):
    weighted = joint('weighted', ('+model.loss_weights=dict(sem=2.0, det=0.0)', 'val_dataloader=None'))
    batch = next(iter(weighted.train_dataloader))
    losses = weighted.model(*weighted.model.data_preprocessor(batch, True), mode='loss')
    total, log = weighted.model.parse_losses(losses)
    sums = {task: sum(v for key, v in losses.items() if key.startswith(f'{task}.loss')) for task in ('sem', 'cls')}
    assert torch.allclose(total, 2 * sums['sem'] + sums['cls']) and log['loss'] is total
    assert all(log[key] is value for key, value in losses.items())


def test_learned_weights_follow_the_paper_and_rest_without_labels():
    part = UncertaintyWeights(('a', 'b'))
    part.log_variances.data = torch.tensor([0.5, -1.0])
    losses = {'a': torch.tensor(3.0), 'b': torch.tensor(0.0)}
    output = part(losses, {'a': torch.tensor(0.5), 'b': torch.tensor(0.0)})
    assert output['a'].item() == pytest.approx(3 * 2.718281828**-0.5 + 0.25)
    sum(output.values()).backward()
    assert part.log_variances.grad.tolist() == pytest.approx([-3 * 2.718281828**-0.5 + 0.5, 0.0])
    assert part.current()['b'].item() == pytest.approx(2.718281828)


def test_gradients_of_tasks_are_measured_and_nothing_else_changes(joint, tmp_path):
    hook = "custom_hooks=[dict(type='vitdense.train.hooks.task_gradients.TaskGradientHook', interval=2)]"
    options = ('val_dataloader=None', 'model.network.backbone.drop_path=0.3', 'train_dataloader.batch_size=4')
    options = tuple(option.replace('model.network.backbone.drop', '+model.network.backbone.drop') for option in options)
    joint('plain', options).train()
    runner = joint('measured', (*options, hook))
    runner.train()
    assert losses_of(tmp_path / 'plain', 'sem') == losses_of(tmp_path / 'measured', 'sem')
    rows = [row for row in read_rows(tmp_path / 'measured' / 'metrics.csv') if 'sem.shared_grad_norm' in row]
    assert [row['step'] for row in rows] == [1, 3, 5]
    assert all(-1 <= row[f'grad_cosine.{pair}'] <= 1 for row in rows for pair in ('sem.det', 'sem.cls', 'det.cls'))

    several = options[:-1] + (
        '+train_dataloader.dataset.batches=homogeneous',
        hook.replace('interval=2', 'interval=6, batches=4'),
    )
    joint('round', several).train()
    (row,) = [row for row in read_rows(tmp_path / 'round' / 'metrics.csv') if 'sem.shared_grad_norm' in row]
    assert row['step'] == 4 and all(row[f'{task}.shared_grad_norm'] > 0 for task in ('sem', 'det', 'cls'))

    model, batch = runner.network_model, next(iter(runner.train_dataloader))
    torch.manual_seed(1)
    actual = task_gradients(model, batch)
    torch.manual_seed(1)
    model.zero_grad()
    losses = model(*model.data_preprocessor(batch, True), mode='loss')
    model.weighted_losses(losses)['sem'].backward()
    grads = [parameter.grad for parameter in model.network.backbone.parameters() if parameter.grad is not None]
    assert actual.norms['sem'] == pytest.approx(float(torch.nn.utils.get_total_norm(grads)), rel=1e-4)
