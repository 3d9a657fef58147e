"""Probing of frozen backbones by k nearest neighbours and linear heads (`tools/probe.py`).

Each backbone runs once over each image, with the evaluation transforms; the heads are trained on the cached features
(`vitdense.probing.feature_cache`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from vitdense.arguments import check
from vitdense.config.run_config import RunConfig
from vitdense.data.class_names import check_classes
from vitdense.data.dataset_protocols import FilePathsDataset
from vitdense.data.datasets import build_dataset, share_classes
from vitdense.device import choose_device, choose_precision, torch_threads
from vitdense.errors import ConfigError
from vitdense.loading.loaders import num_workers
from vitdense.probing import classifiers, segment
from vitdense.probing.extract import FeatureExtractor, check_probeable, choose_branch, with_backbone
from vitdense.probing.feature_cache import PART, FeatureCache, features_of, files_key, key_of, weights_key
from vitdense.protocols import HeadMetric
from vitdense.registry import build, takes
from vitdense.reporting.console import print_table, progress, start_logging
from vitdense.storage.atomic import finite, make_folder, write_json
from vitdense.train.seeding import seed_everything
from vitdense.train.start import build_model
from vitdense.types import Batch, ImageClass, Meta, Target

HEADS = ('knn', 'linear')
STEPS = {'image_label': 1000, 'semantic': 400}
logger = logging.getLogger('vitdense')


class Settings(NamedTuple):
    """Options of the probing heads, the same for every backbone."""

    heads: tuple[str, ...]
    rates: tuple[float, ...]
    steps: int
    device: torch.device
    work_dir: Path


def probe(
    cfg: RunConfig,
    *,
    heads: Sequence[str] | None = None,
    backbones: Sequence[str] = (),
    weights: Sequence[str] = (),
    branch: str | None = None,
    rates: Sequence[float] = (),
    steps: int | None = None,
    work_dir: str | Path | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Probe each backbone on the config's data; print one table; return its rows, which are also in `probe.json`.

    `backbones` are names of timm, each with `=FILE` for weights of one's own; `weights` are files for the config's
    backbone; with neither the config's backbone is probed as it is. `heads` are 'knn' and 'linear' (default: all that
    the task allows; label maps have no 'knn'). `branch` chooses among several heads of the config. `rates` are the
    learning rates of the linear head: the best on a tenth of the training images, held out, is then trained on all.

    Scores are those of the config's `test_evaluator`, in [0, 1]. Raises ConfigError, DataError, CheckpointError.
    """
    folder = Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(cfg.filename).stem / 'probe')
    make_folder(folder)
    start_logging(folder)
    name = choose_branch(cfg, branch)
    candidates = with_backbone(cfg.model.network.backbone, backbones, weights)
    rows: list[dict[str, Any]] = []
    for label, backbone in candidates:
        model = single_branch(cfg.model, name, backbone)
        backbone_probe = _Probe(cfg.replaced(model=model), name, choose_device(device))
        settings = backbone_probe.settings(heads, rates, steps, folder)
        for row in backbone_probe.rows(settings):
            rows.append({'backbone': label, 'pretrained': str(backbone.get('pretrained', False)), **row})
            write_json(folder / 'probe.json', {'config': str(cfg.filename), 'branch': name, 'rows': rows})
    _print(rows, title=f'{name}: {Path(cfg.filename).stem}')
    logger.info('scores: %s', folder / 'probe.json')
    return rows


def single_branch(model: Mapping[str, Any], name: str, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model recipe with the branch `name` only, on `backbone`, without sliding window and TTA."""
    network = {**model['network'], 'backbone': dict(backbone), 'branches': {name: model['network']['branches'][name]}}
    kept = {key: value for key, value in model.items() if key not in ('tiler', 'tta', 'augment')}
    return {**kept, 'network': network, 'tasks': {name: model['tasks'][name]}}


class _Probe:
    """Probe of one backbone on the data sets of a config."""

    def __init__(self, cfg: RunConfig, name: str, device: torch.device) -> None:
        self.recipe, self.name, self.seed = cfg, name, cfg.get('seed', 0)
        self.sections = {part: self.recipe[f'{part}_dataloader'] for part in ('train', 'test')}
        self.data = probe_data(self.sections, root=cfg.get('data_root'))
        seed_everything(self.seed)
        model = build_model(cfg, self.data['train'].metainfo, pretrained=True)
        check_probeable(model, name)
        torch.set_num_threads(torch_threads(num_workers(self.sections['test'])))
        precision = choose_precision('off' if cfg.get('amp', 'auto') == 'auto' else cfg.amp, device)
        model.amp = precision.dtype
        self.task = model.tasks[name]
        self.num_classes = len(model.head_classes[name])
        self.extractor = FeatureExtractor(model.to(device).eval(), name)
        weights = weights_key(self.extractor.weights)
        self.model_key = [weights, self.recipe['model']['network'], str(precision.dtype), self.seed]

    def settings(
        self, heads: Sequence[str] | None, rates: Sequence[float], steps: int | None, folder: Path
    ) -> Settings:
        """Return the settings with the defaults of the task."""
        image_level = self.extractor.image_level
        return Settings(
            tuple(heads or (HEADS if image_level else HEADS[1:])),
            tuple(rates or (classifiers.RATES if image_level else segment.RATES)),
            steps or STEPS['image_label' if image_level else 'semantic'],
            self.extractor.device,
            folder,
        )

    def rows(self, settings: Settings) -> list[dict[str, Any]]:
        """Return a row for each head. Raises ConfigError for heads that the task cannot have."""
        check_heads(settings.heads, image_level=self.extractor.image_level)
        began = time.perf_counter()
        caches = {part: self.features(part) for part in ('train', 'test')}
        common = {'dim': self.extractor.dim, 'seconds_features': round(time.perf_counter() - began, 1)}
        make = self._class_rows if self.extractor.image_level else self._pixel_rows
        return [{**common, **row} for row in make(caches, settings)]

    def features(self, part: str) -> FeatureCache:
        """Return the features of the images for `part`."""
        dataset, section = self.data[part], self.sections[part]
        files = files_key(dataset.paths()) if isinstance(dataset, FilePathsDataset) else len(dataset)
        size = 4 * PART if self.extractor.image_level else PART  # maps are large
        root = str(Path(self.recipe.get('data_root') or '').resolve())
        key = key_of(self.model_key, section['dataset'], root, files, size)
        with progress(f'features, {part}', len(dataset)) as on_progress:
            return features_of(
                dataset, section, self.extractor.read, key=key, seed=self.seed, part=size, on_progress=on_progress
            )

    def _metrics(self) -> list[Any]:
        """Return the config's metrics of this branch, with the class names set."""
        metrics = [build(dict(metric)) for metric in self.recipe.get('test_evaluator') or ()]
        metrics = [metric for metric in metrics if isinstance(metric, HeadMetric) and metric.head == self.name]
        for metric in metrics:
            metric.dataset_meta = self.data['test'].metainfo
        why = f"no metric reads the branch '{self.name}', and a probe is scored as a test is"
        fix = f"add dict(type=Accuracy, head='{self.name}'), or MeanIoU for label maps"
        check(bool(metrics), 'test_evaluator', self.recipe.get('test_evaluator'), why, fix)
        return metrics

    def _class_rows(self, caches: Mapping[str, FeatureCache], settings: Settings) -> list[dict[str, Any]]:
        (train, labels), (test, targets) = (caches[part].table() for part in ('train', 'test'))
        train, labels, test = (value.to(settings.device) for value in (train, labels, test))
        rows = []
        if 'knn' in settings.heads:
            by_k = classifiers.knn_scores(train, labels, test, self.num_classes)
            rows += [{'head': 'knn', 'k': k, **self._class_scores(scores, targets)} for k, scores in by_k.items()]
        if 'linear' in settings.heads:
            began = time.perf_counter()
            options = dict(steps=settings.steps, seed=self.seed)
            rate, held = classifiers.choose_rate(train, labels, self.num_classes, rates=settings.rates, **options)
            fit = classifiers.fit_linear(train, labels, self.num_classes, rates=[rate], **options)
            scores = self._class_scores(fit.logits(test)[0].softmax(-1), targets)
            sweep = {f'{one:g}': share for one, share in zip(settings.rates, held, strict=True)}
            rows.append({'head': 'linear', 'lr': rate, **scores, 'held_out': sweep, 'seconds': _since(began)})
        return rows

    def _class_scores(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        metrics = self._metrics()
        targets = [Target(**{self.task.field: label}) for label in labels]
        metas = [Meta(index) for index in range(len(labels))]
        predictions = [{self.name: ImageClass(row)} for row in scores.cpu()]
        for metric in metrics:
            metric.process(Batch(torch.empty(0), targets, metas), predictions)
        return finite({key: value for metric in metrics for key, value in metric.evaluate(len(labels)).items()})

    def _pixel_rows(self, caches: Mapping[str, FeatureCache], settings: Settings) -> list[dict[str, Any]]:
        began = time.perf_counter()
        train, test = caches['train'], caches['test']
        segment.check_cells(train[0])
        with progress('linear head', settings.steps) as on_progress:
            head_probe = segment.PixelProbe(
                self.recipe['model']['network']['branches'][self.name]['head'],
                train,
                self.task,
                self.num_classes,
                name=self.name,
                batch_size=self.sections['train'].get('batch_size', 8),
                steps=settings.steps,
                seed=self.seed,
                device=settings.device,
                on_progress=on_progress,
            )
            rate, held = head_probe.choose_rate(settings.rates, self._metrics())
            head = head_probe.fit([rate], range(len(train)))[0]
        scores = finite(head_probe.scores(head, test, range(len(test)), self._metrics()))
        sweep = {f'{one:g}': score for one, score in held.items()}
        return [{'head': 'linear', 'lr': rate, **scores, 'held_out': sweep, 'seconds': _since(began)}]


def probe_data(sections: Mapping[str, Mapping[str, Any]], *, root: str | None) -> dict[str, Dataset]:
    """Return the data sets for training and test, both with the transforms of the test; their recipes change in
    `sections`. Raises ConfigError for a data set without transforms of its own, and for classes that differ.
    """
    for part, section in sections.items():
        why = 'it has no transforms of its own, and a probe reads training images with those of the test images'
        fix = 'probe with a config of one data set that says transforms=[...]'
        check(takes(section['dataset'], 'transforms'), f'{part}_dataloader.dataset', section['dataset'], why, fix)
    sections['train']['dataset']['transforms'] = sections['test']['dataset'].get('transforms', ())
    datasets = {part: build_dataset(section['dataset'], root=root) for part, section in sections.items()}
    share_classes(datasets['test'], datasets['train'].metainfo)
    check_classes(datasets['train'].metainfo, datasets['test'].metainfo, where='train_dataloader, test_dataloader')
    return datasets


def check_heads(heads: Sequence[str], *, image_level: bool) -> None:
    """Raise ConfigError for heads that are unknown, or that the task does not have."""
    unknown = [head for head in heads if head not in HEADS]
    if unknown or ('knn' in heads and not image_level):
        raise ConfigError(
            f"the probe has no head '{unknown[0]}'" if unknown else "label maps have no head 'knn'",
            where='--heads',
            why=f'the heads are {", ".join(HEADS)}' if unknown else 'every cell would be a neighbour: millions of them',
            fix=f'write --heads {",".join(HEADS) if image_level else "linear"}',
        )


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 1)


def _print(rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Print all rows as one table: a line for each backbone and head."""
    keys = list(dict.fromkeys(key for row in rows for key in row if '/' in key))
    header = ['backbone', 'dim', 'head', *(key.rpartition('/')[2] for key in keys), 'lr', 'features, s', 'head, s']
    lines = [
        [
            row['backbone'],
            str(row['dim']),
            f'knn, k = {row["k"]}' if row['head'] == 'knn' else row['head'],
            *(f'{row[key]:.4f}' if row.get(key) is not None else '' for key in keys),
            f'{row["lr"]:g}' if 'lr' in row else '',
            f'{row["seconds_features"]:.1f}',
            f'{row["seconds"]:.1f}' if 'seconds' in row else '',
        ]
        for row in rows
    ]
    print_table(title, header, lines)
