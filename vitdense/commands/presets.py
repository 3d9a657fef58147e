"""Presets of `configs/presets`: which one fits a task and the hardware, and how long it is to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from vitdense.config.run_config import RunConfig
from vitdense.data.formats.labelled_folder import LabelledFolder
from vitdense.device import cpu_count
from vitdense.errors import ConfigError

Task = Literal['det', 'sem', 'cls', 'inst']
LABELS = {'det': 'detection', 'sem': 'segmentation', 'cls': 'classification', 'inst': 'detection'}  # of a folder
GPU_MEMORY = 10  # GiB from which on the presets for GPUs are taken
MIXED = 0.8  # share of a run in which images are mixed; the rest are plain ones
VALIDATIONS = 3
MIN_STEPS = 50
IMAGES_PER_CLASS = 200  # seen in a run without a given time, so that it is longer for many classes


class Preset(NamedTuple):
    """A config for a task and hardware."""

    task: Task
    gpu: bool
    config: str
    most_epochs: int  # passes over the data that a run may be stretched to when there is time

    @property
    def hardware(self) -> str:
        """The hardware in words."""
        return f'a GPU of {GPU_MEMORY} GiB or more' if self.gpu else 'a CPU or a small GPU'


PRESETS = (
    Preset('det', False, 'configs/presets/detection_cpu.py', 150),
    Preset('det', True, 'configs/presets/detection_gpu.py', 300),
    Preset('sem', False, 'configs/presets/semantic_cpu.py', 150),
    Preset('sem', True, 'configs/presets/semantic_gpu.py', 300),
    Preset('cls', False, 'configs/presets/classification_cpu.py', 50),
    Preset('cls', True, 'configs/presets/classification_gpu.py', 100),
    Preset('inst', False, 'configs/presets/instances_cpu.py', 150),
    Preset('inst', True, 'configs/presets/instances_gpu.py', 300),
)


def choose_preset(task: Task, device: torch.device) -> Preset:
    """Return the preset for a task on a device."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == 'cuda' else 0
    return next(each for each in PRESETS if (each.task, each.gpu) == (task, memory >= GPU_MEMORY * 2**30))


def hardware_of(device: torch.device) -> str:
    """Return the device in words."""
    if device.type != 'cuda':
        return f'{cpu_count()} CPU cores'
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f'{torch.cuda.get_device_name(device)}, {memory:.0f} GiB'


def task_of(data: LabelledFolder, task: str | None) -> Task:
    """Return `task`, or by default the one that the labels of a folder are for. Raises ConfigError."""
    fitting = [name for name in get_args(Task) if LABELS[name] == data.task]
    if task is None:
        return fitting[0]
    if task not in fitting:
        raise ConfigError(
            f"the labels of the folder are not for the task '{task}'",
            where=f'--task {task}',
            why=f'{data.root} is {data.format}, which is for {" or ".join(fitting)}',
            fix=f'write --task {fitting[0]}, or leave --task out',
        )
    return task


def steps_in(seconds: float, cost: Cost) -> int:
    """Return how many steps of training fit into `seconds`, with validations and a test."""
    return max(int((seconds - VALIDATIONS * cost.validation - cost.test) / cost.step), 0)


def useful_steps(steps: int, *, images: int, batch_size: int, most_epochs: int) -> int:
    """Return `steps`, at most `most_epochs` passes over the images and at least `MIN_STEPS`."""
    return max(min(steps, most_epochs * images // batch_size), MIN_STEPS)


class Cost(NamedTuple):
    """Measured seconds."""

    step: float
    validation: float
    test: float

    def total(self, steps: int) -> float:
        """Return the seconds of a run of `steps`."""
        return steps * self.step + VALIDATIONS * self.validation + self.test


def length_options(cfg: RunConfig, steps: int, images: int) -> list[str]:
    """Return the options `K=V` that stretch a config to `steps`.

    What counts steps or epochs keeps its share of the run; warm-ups do not become longer. `images` is the number of
    images for training.
    """
    schedule, unit = cfg.schedule, -(-images // images_per_step(cfg)) if cfg.schedule.max_epochs else 1
    factor, interval = steps / usual_steps(cfg, images), max(-(-steps // VALIDATIONS), 1)
    options = [f'schedule.max_iters={steps}', f'schedule.val_interval={interval}', f'checkpoint.interval={interval}']
    if schedule.max_epochs:
        options.append('schedule.max_epochs=None')
    if schedule.milestones:
        options.append(f'schedule.milestones={tuple(int(each * unit * factor) for each in schedule.milestones)}')
    for name in ('warmup_iters', 'backbone_warmup_iters'):
        if schedule[name]:
            options.append(f'schedule.{name}={min(schedule[name], int(schedule[name] * factor))}')
    for row, hook in enumerate(cfg.custom_hooks):
        if 'steps' in hook:
            stretched = tuple(min(step, max(int(step * factor), 1)) for step in hook['steps'])
            options.append(f'custom_hooks.{row}.steps={stretched}')
    if cfg.ema:
        options.append(f'ema.momentum={min(cfg.ema.momentum / factor, 0.2):.3g}')
    epochs = steps * images_per_step(cfg) / images
    for name, step in _named_steps(cfg).items():
        if 'epochs' in step:
            options.append(f'train_dataloader.dataset.transforms.{name}.epochs={int(MIXED * epochs)}')
    return options


def usual_steps(cfg: RunConfig, images: int) -> int:
    """Return the number of steps that a config is written for."""
    return cfg.schedule.max_iters or cfg.schedule.max_epochs * -(-images // images_per_step(cfg))


def default_steps(cfg: RunConfig, images: int, classes: int) -> int:
    """Return the number of steps of a run without a given time: those that a config is written for, more for many
    classes.
    """
    return max(usual_steps(cfg, images), -(-IMAGES_PER_CLASS * classes // images_per_step(cfg)))


def images_per_step(cfg: RunConfig) -> int:
    """Return the number of images in a batch."""
    return cfg.train_dataloader.batch_size


def query_options(cfg: RunConfig, most_objects: int) -> list[str]:
    """Return the options that give a detector queries for `most_objects` in an image, with some to spare."""
    queries = -(-int(1.5 * most_objects) // 50) * 50
    options = []
    for name, branch in cfg.model.network.get('branches', {}).items():
        if queries > branch['head'].get('num_queries', queries):
            options += [f'model.network.branches.{name}.head.num_queries={queries}']
            options += [f'+model.tasks.{name}.top_k={max(queries, 100)}']
    return options


def _named_steps(cfg: RunConfig) -> Mapping[str, Any]:
    steps: Mapping[str, Any] | Sequence[Any] = cfg.train_dataloader.dataset.get('transforms') or {}
    return steps if isinstance(steps, Mapping) else {str(row): step for row, step in enumerate(steps)}


def default_work_dir(folder: Path) -> Path:
    """Return the work directory of a run on the data of `folder`."""
    return Path('work_dirs') / folder.resolve().name
