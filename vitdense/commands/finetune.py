"""`vitdense finetune FOLDER`: from labelled images to a tested model, without a config written by hand."""

from __future__ import annotations

import logging
import math
import tempfile
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitdense.checkpoints.model_config import config_from_model
from vitdense.commands.models import trained_model
from vitdense.commands.parser import duration
from vitdense.commands.presets import (
    Cost,
    Preset,
    Task,
    choose_preset,
    default_steps,
    default_work_dir,
    hardware_of,
    length_options,
    query_options,
    steps_in,
    task_of,
    useful_steps,
    usual_steps,
)
from vitdense.commands.test import test
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.config.run_config import RunConfig
from vitdense.data.dataset_protocols import Dataset, ExtentDataset
from vitdense.data.datasets import build_dataset
from vitdense.data.formats.labelled_folder import LabelledFolder, read_folder
from vitdense.device import choose_device, finish_work
from vitdense.loading.loaders import close_loaders
from vitdense.multihead.add_head import choose_start
from vitdense.reporting.console import quiet, start_logging
from vitdense.reporting.next_commands import tool_command
from vitdense.train.build import make_trainer
from vitdense.train.runner import DenseRunner

logger = logging.getLogger('vitdense')
MIN_EPOCHS = 5  # passes over the images below which a run is said to be short
HELD_OUT = 0.15  # share of the images for training that is validated on, where the folder has no split for that
TIMED_STEPS, TIMED_SECONDS = 3, 6.0  # at least so many of the one and the other are timed


def finetune(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    task: Task | None = None,
    time: str | float | None = None,
    backbone_weights: str | Path | None = None,
    ignore: int | None = None,
    work_dir: str | Path | None = None,
    device: str | None = None,
    seed: int | None = None,
    options: Sequence[str] = (),
    accept_licence: bool = False,
) -> Path:
    """Train a model on the labelled images of `folder`, validate and test it, and return its model folder.

    The format of the folder says the task (boxes of objects with polygons can be trained on as masks: task='inst').
    Architecture and training are those of the preset in `configs/presets` for the task and the hardware; with `model`,
    those of a trained model (`config_from_model`) or of a published one by its name (`accept_licence`: also where its
    licence has conditions). `time` ('30m', or seconds) sets the length of the run, by timing a few steps; without it
    the run is as long as the preset. `backbone_weights` is a file of the ViT's pretrained weights, for machines without
    network; `ignore` a number of label maps that is no class. `options` are `K=V` words, which come last. The work
    directory (default: work_dirs/NAME_OF_FOLDER) gets the resolved config, which trains the same again.

    Raises ConfigError, DataError, CheckpointError, ResourceError.
    """
    deadline = None if time is None else clock.monotonic() + duration(time)
    start_logging(None, keep=True)
    model = trained_model(model, accept_licence=accept_licence)
    where, data = choose_device(device), read_folder(Path(folder))
    first = _first_options(data, backbone_weights, ignore, seed)
    plan = _Plan(data, choose_preset(task_of(data, task), where), model, first)
    cfg, weights = plan.config(options)
    dataset = _describe(cfg, data)
    preset = f'{plan.preset.config} (for {plan.preset.hardware})' if model is None else f'the training of {model}'
    logger.info('%s: %s', hardware_of(where), preset)
    chosen = query_options(cfg, dataset.extent()[1]) if model is None and isinstance(dataset, ExtentDataset) else []
    chosen += _fit_length(plan, [*chosen, *options], dataset, device, deadline)
    cfg, weights = plan.config([*chosen, *options])
    work_dir = Path(work_dir or default_work_dir(data.root))
    for option in (*plan.first, *chosen, *options):
        logger.info('  %s', option)
    runner = train(cfg, work_dir=work_dir, weights=weights, device=device)
    _finish(runner, weights, device, tested='test' in data.splits)
    return work_dir / 'model'


class _Plan:
    """What is trained on which data; `config` reads it with options."""

    def __init__(self, data: LabelledFolder, preset: Preset, model: str | Path | None, first: Sequence[str]) -> None:
        self.data, self.preset, self.model, self.first = data, preset, model, list(first)

    def config(self, options: Sequence[str]) -> tuple[RunConfig, str | None]:
        """Return the config, and the weights of the whole model to begin with."""
        options = [*self.first, *options]
        with quiet():  # it is read several times
            if self.model is not None:
                return config_from_model(self.model, self.data.root, options=options, held_out=HELD_OUT)
            return load_config(self.preset.config, options, data=self.data.root, held_out=HELD_OUT), None


def _fit_length(
    plan: _Plan, options: Sequence[str], dataset: Dataset, device: str | None, deadline: float | None
) -> list[str]:
    """Return the options that set the length of a run over a data set: what fits before `deadline` (of the monotonic
    clock), or by default that of the config, longer for many classes; and the precision that was timed.
    """
    base, cost, left, chosen = plan.config(())[0], None, None, []
    cfg, weights = plan.config(options)
    images, batch = len(dataset), cfg.train_dataloader.batch_size
    steps = default_steps(base, images, len(next(iter(dataset.metainfo['classes'].values()))))
    if deadline is not None:
        cost, precision = measure(cfg, weights, device, tested='test' in plan.data.splits)
        chosen.append(f'amp={precision}')
        left = deadline - clock.monotonic()
        steps = steps_in(left, cost)
    steps = useful_steps(steps, images=images, batch_size=batch, most_epochs=plan.preset.most_epochs)
    _log_length(steps, steps * batch / images, cost, left)
    return chosen if steps == usual_steps(base, images) else [*chosen, *length_options(base, steps, images)]


def measure(cfg: RunConfig, weights: str | None, device: str | None, *, tested: bool) -> tuple[Cost, str]:
    """Return the seconds of a training step, a validation and a test (0 unless `tested`), and the precision chosen.

    The first step, which is slower, does not count. Nothing is kept.
    """
    with tempfile.TemporaryDirectory(prefix='vitdense-') as folder, quiet():
        runner = make_trainer(cfg, folder, start=choose_start(cfg, weights=weights), device=device)
        wrapper = runner.optim_wrapper
        wrapper.initialize_count_status(runner.model, 0, 1)
        runner.model.train()
        times: list[float] = []
        for batch in runner.train_dataloader:
            start = clock.perf_counter()
            runner.model.train_step(batch, wrapper)
            finish_work(runner.device)
            times.append(clock.perf_counter() - start)
            if len(times) > TIMED_STEPS and sum(times[1:]) >= TIMED_SECONDS:
                break
        validation = _evaluation_seconds(runner)
        close_loaders()
    return Cost(sum(times[1:]) / len(times[1:]), validation, validation if tested else 0.0), runner.precision.name


def _evaluation_seconds(runner: DenseRunner) -> float:
    """Return the expected seconds of a validation, from its first batches."""
    runner.model.eval()
    done, start = 0, clock.perf_counter()
    with torch.no_grad():
        for number, batch in enumerate(runner.val_dataloader):
            if number == 1:  # the first batch is slower
                done, start = 0, clock.perf_counter()
            runner.model.val_step(batch)
            finish_work(runner.device)
            done += len(batch.metas)
            if number == 2:
                break
    return (clock.perf_counter() - start) / done * len(runner.val_dataloader.dataset)


def _first_options(data: LabelledFolder, backbone_weights: Any, ignore: int | None, seed: int | None) -> list[str]:
    options = [] if seed is None else [f'seed={seed}']
    options += [] if backbone_weights is None else [f'model.network.backbone.pretrained={backbone_weights}']
    if ignore is not None:
        kinds = ('train', 'val', *(('test',) if 'test' in data.splits else ()))
        options += [f'+{kind}_dataloader.dataset.ignore={ignore}' for kind in kinds]
    return options


def _describe(cfg: RunConfig, data: LabelledFolder) -> Any:
    """Log what the folder holds, and return the data set of training."""
    with quiet():
        sets = {
            kind: build_dataset(cfg[f'{kind}_dataloader']['dataset'], root=cfg.get('data_root'))
            for kind in ('train', 'val', *(('test',) if 'test' in data.splits else ()))
        }
    classes = next(iter(sets['train'].metainfo['classes'].values()))
    counts = ' / '.join(f'{len(dataset):,}' for dataset in sets.values())
    names = ', '.join(classes[:8]) + (', ...' if len(classes) > 8 else '')
    number = f'{len(classes)} class{"es" * (len(classes) != 1)}'
    logger.info('%s: %s: %s (%s), %s images (%s)', data.root, data.format, number, names, counts, ' / '.join(sets))
    if 'val' not in data.splits:
        logger.info(
            'there is no split for validation: %.0f %% of the images for training, taken at random (with part=), '
            'are for that',
            100 * HELD_OUT,
        )
    return sets['train']


def _log_length(steps: int, epochs: float, cost: Cost | None, left: float | None) -> None:
    """Log how long the run is; `cost` and the seconds `left` are known where there is a time to keep."""
    logger.info('%d steps, %.1f passes over the images for training', steps, epochs)
    if cost is not None:
        text = '%.2f s a step, %.0f s a validation: about %.0f minutes'
        logger.info(text, cost.step, cost.validation, cost.total(steps) / 60)
        if cost.total(steps) > left:
            minutes = math.ceil(cost.total(steps) / 60)
            logger.warning('--time is too short for %d steps, the fewest of use: it takes %d minutes', steps, minutes)
    if epochs < MIN_EPOCHS:
        logger.warning('that is little: fewer than %d passes seldom suffice; give it more --time', MIN_EPOCHS)


def _finish(runner: DenseRunner, weights: str | None, device: str | None, *, tested: bool) -> None:
    """Test the best weights on the split for that, and log how to go on."""
    folder = runner.folder
    if tested:
        checkpoint = folder / 'best.pth' if runner.train_loop.history.best else folder / 'model'
        test(load_config(folder / 'config.py'), checkpoint, work_dir=folder / 'test', device=device)
    begin = () if weights is None else ('--weights', weights)
    logger.info('the same run again, and the model as one ONNX graph:')
    logger.info('  %s', tool_command('train', folder / 'config.py', *begin))
    logger.info('  %s', tool_command('export', folder / 'model', '--out', folder / 'onnx'))
