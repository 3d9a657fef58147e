"""The data sets of a run, built from its config and checked against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import Dataset

from vitdense.arguments import check
from vitdense.config.load import named_sections
from vitdense.config.run_config import RunConfig
from vitdense.data.class_names import check_classes
from vitdense.data.datasets import build_dataset, share_classes
from vitdense.data.mixture import check_labels
from vitdense.loading.data_checks import (
    compare_ranges,
    log_data,
    refuse_missing,
)
from vitdense.loading.loaders import max_bad_fraction


def required_sections(cfg: RunConfig, *names: str) -> dict[str, dict[str, Any]]:
    """Return copies of loader sections. Raises ConfigError when the first is missing."""
    for name in ('model', names[0]):
        check_section(cfg, name)
    return {name: dict(cfg[name]) for name in names if cfg.get(name)}


def check_section(cfg: RunConfig, name: str) -> None:
    """Raise ConfigError where the config lacks a section."""
    why = f'{cfg.filename} does not give it, and there is nothing to run without it'
    check(bool(cfg.get(name)), name, None, why, f'add {name} = dict(...); configs/quickstart/shapes.py shows one')


def training_data(cfg: RunConfig, sections: Mapping[str, Any]) -> tuple[Dataset, dict[str, Dataset]]:
    """Return the training data, and the validation data by set.

    Raises ConfigError when they disagree, DataError for missing files and impossible labels.
    """
    first = build_dataset(sections['train_dataloader']['dataset'], root=cfg.get('data_root'))
    others = evaluation_data(cfg, sections['val_dataloader']) if 'val_dataloader' in sections else {}
    for other in others.values():
        share_classes(other, first.metainfo)
        check_classes(first.metainfo, other.metainfo, where='train_dataloader.dataset, val_dataloader.dataset')
    log_data({'training': first} | {f'validation {name}'.strip(): other for name, other in others.items()})
    refuse_missing(first, name='training', max_bad_fraction=max_bad_fraction(sections['train_dataloader']))
    for other in others.values():
        refuse_missing(other, name='validation')
    compare_ranges(first, {f'validation {name}'.strip(): other for name, other in others.items()})
    for dataset in (first, *others.values()):
        check_labels(dataset, training=dataset is first)  # a sample of the labels now, rather than a crash in an hour
    return first, others


def extend_data(datasets: Iterable[Dataset], metainfo: Mapping[str, Any]) -> None:
    """Number the classes of data sets as in `metainfo`, which has more of them. Raises ConfigError where one cannot."""
    for dataset in datasets:
        share_classes(dataset, metainfo)
        check_classes(metainfo, dataset.metainfo, where='keep_classes')


def evaluation_data(cfg: RunConfig, section: Mapping[str, Any]) -> dict[str, Dataset]:
    """Return the data sets of a validation or test section by name."""
    named = named_sections(section).items()
    return {name: build_dataset(each['dataset'], root=cfg.get('data_root')) for name, each in named}
