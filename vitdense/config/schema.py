"""The sections of a config.

Fields are keys; their defaults are filled in, and values are checked against their annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from vitdense.arguments import MAX_BAD_FRACTION
from vitdense.config.value_types import Limits, Recipe

COUNT, SIZE = Limits(0), Limits(1, empty=False)
POSITIVE = Limits(0, open='low', empty=False)
SHARE, PART = Limits(0, 1), Limits(0, 1, open='high')  # of all, or of less than all
FACTOR = Limits(0, 1, open='low')
Counts, Sizes = Annotated[int, COUNT], Annotated[int, SIZE]
Rule = Literal['greater', 'less']


@dataclass
class ClippingSection:
    """How gradients are clipped."""

    max_norm: Annotated[float, POSITIVE]
    by_part: bool = False


@dataclass
class OptimSection:
    """`optim_wrapper`: the optimizer and what a step does."""

    optimizer: Recipe
    groups: Recipe | None = None
    clip_grad: ClippingSection | None = None
    accumulative_counts: Sizes = 1


@dataclass
class ScheduleSection:
    """`schedule`: length of a run and learning rate schedule."""

    max_iters: Sizes | None = None
    max_epochs: Sizes | None = None
    val_interval: Sizes | None = None
    warmup_iters: Counts = 0
    warmup_ratio: Annotated[float, SHARE] = 1e-6
    backbone_warmup_iters: Counts = 0
    decay: Literal['poly', 'cosine', 'step', 'constant'] = 'poly'
    power: Annotated[float, COUNT] = 1.0
    milestones: Annotated[Sequence[int], COUNT] = ()
    gamma: Annotated[float, COUNT] = 0.1
    min_ratio: Annotated[float, SHARE] = 0.0


@dataclass
class CheckpointSection:
    """`checkpoint`: when a run saves, and the score of the best weights."""

    interval: Sizes | None = None
    keep: Sizes = 2
    best: str | Sequence[str] | None = None
    rule: Rule = 'greater'


@dataclass
class EmaSection:
    """`ema`: an average of the weights."""

    momentum: Annotated[float, Limits(0, 1, open='both')] = 0.0002
    buffers: bool = False


@dataclass
class EarlyStoppingSection:
    """`early_stopping`: stop when a score no longer improves."""

    monitor: str | Annotated[Sequence[str], Limits(empty=False)]
    rule: Rule = 'greater'
    patience: Sizes = 5
    min_delta: Annotated[float, COUNT] = 0.0


@dataclass
class AddHeadSection:
    """`add_head`: the branch that is trained alone on a trained model. `transforms` are noted by the run itself."""

    name: str | None = None
    weights: str | None = None
    transforms: Sequence[Recipe] | None = None


@dataclass
class KeepClassesSection:
    """`keep_classes`: the classes of the start model stay, and its predictions are labels where the data has none."""

    weights: str | None = None  # the start model
    min_score: Annotated[float, SHARE] | None = None  # of labels; None: the model's best F1, by class, else 0.5
    background: Sequence[str] = ('background',)  # classes of the data that stand for anything else


@dataclass
class LoaderSection:
    """A data set and how it is loaded."""

    dataset: Recipe
    batch_size: Sizes = 1
    num_workers: Counts = 2


@dataclass
class TrainingLoaderSection(LoaderSection):
    """`train_dataloader`: of the images that cannot be read, a share of `max_bad_fraction` is replaced by others."""

    max_bad_fraction: Annotated[float, SHARE] = MAX_BAD_FRACTION


@dataclass
class ConfigFile:
    """All sections. A section of several validation or test sets is a dict of loaders by name."""

    model: Recipe | None = None
    train_dataloader: TrainingLoaderSection | None = None
    val_dataloader: dict | None = None
    test_dataloader: dict | None = None
    val_evaluator: Sequence[Recipe] | Mapping[str, Sequence[Recipe]] | None = None
    test_evaluator: Sequence[Recipe] | Mapping[str, Sequence[Recipe]] | None = None
    optim_wrapper: OptimSection | None = None
    schedule: ScheduleSection | None = None
    checkpoint: CheckpointSection | None = None
    ema: EmaSection | None = None
    early_stopping: EarlyStoppingSection | None = None
    add_head: AddHeadSection | None = None
    keep_classes: KeepClassesSection | None = None
    loggers: Sequence[Literal['tensorboard', 'wandb', 'mlflow']] = ()
    seed: Annotated[int, Limits(0, 2**32 - 1)] = 0
    amp: Literal['auto', 'bf16', 'fp16', 'off'] = 'auto'
    parallel: Literal['ddp', 'fsdp'] = 'ddp'  # with several processes: each holds the model, or a shard of it
    custom_hooks: Sequence[Recipe] = ()
    sample_images: Counts = 8
    work_dir: str | None = None
    data_root: str | None = None  # handed to every data set as `root`
