"""`tools/test.py`: evaluate a checkpoint and write scores, predictions and overlays."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from PIL import Image

from vitdense import visualize
from vitdense.checkpoints.model_folder import METAINFO, model_folder_of, set_operating_points
from vitdense.checkpoints.run import steps_in
from vitdense.commands.output_paths import OutputPaths
from vitdense.config.run_config import RunConfig, work_folder
from vitdense.distributed.processes import join_processes, leave_processes, lost_processes_explained
from vitdense.export.folder import is_exported, read_exported
from vitdense.loading.evaluation_sets import set_name
from vitdense.loading.loaders import close_loaders
from vitdense.metrics.base import operating_points_of
from vitdense.metrics.coco_columns import category_ids, results_of
from vitdense.metrics.confusion import save_confusions
from vitdense.model import DenseModel
from vitdense.reporting.console import progress, start_logging
from vitdense.reporting.progress import evaluated, print_metrics
from vitdense.reporting.run_images import on_cpu, shown_image
from vitdense.storage.atomic import finite, make_folder, write_json, write_text
from vitdense.train.compile import explained
from vitdense.train.tester import make_tester
from vitdense.types import Batch, ImageClass, Instances, Meta, SemanticMap

logger = logging.getLogger('vitdense')


def test(
    cfg: RunConfig,
    checkpoint: str | Path | None,
    *,
    work_dir: str | Path | None = None,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    device: str | None = None,
    tta: bool = False,
    compiled: bool = False,
    skip_bad_eval: bool = False,
    save_thresholds: bool = False,
) -> dict[str, float | int | None]:
    """Evaluate `checkpoint` (None: the published weights; a folder of `export_model`: its graph) on the config's test
    data; return the scores, which are also in `metrics.json`.

    Scores go to `work_dir`, or to `out`, or to `test` in the config's work directory; a work directory that holds a
    training run keeps its own scores and gets a folder `test`. `out` also gets the predictions: label maps as
    `HEAD/PATH.png`, with the path of the image below its data set and the numbers of the classes **as trained** (with
    `reduce_zero_label` class 0 is the file's label 1), objects of all images as `HEAD/results.json`, COCO's results
    format with the category ids of the annotation file (and `HEAD/results_segm.json` where there are masks), or the
    five best classes of every image, in the file of that name. `show_dir` gets images with the predictions drawn on
    them as `PATH.jpg`. In both, each of several test sets, and each data set of a mixture, has a folder of its own.
    `compiled` compiles the network. `skip_bad_eval` leaves unreadable images out; how many is said beside the scores,
    and is `skipped_images` among them. `operating_points.json` gets the score thresholds of best F1 of each class; with
    `save_thresholds` the model folder of the checkpoint gets them as well.
    """
    base = _scores_folder(cfg, work_dir, out)
    join_processes(device)
    start_logging(base)
    hook, (cfg, trained) = PredictionHook(out, show_dir), _with_graph(cfg, checkpoint)
    options = dict(device=device, tta=tta, compiled=compiled, skip_bad_eval=skip_bad_eval)
    runner = make_tester(cfg, base, checkpoint, **options, hooks=(hook,), trained=trained)
    try:
        with explained(), lost_processes_explained():
            metrics = finite(runner.test())
    finally:
        hook.close()
        close_loaders()
    if is_main_process():
        evaluators = runner.test_evaluator.metrics
        total = len(runner.test_dataloader.dataset)
        print_metrics(evaluators, metrics, title=evaluated(metrics, total) or f'{total} images')
        save_confusions(evaluators, base)
        _save_points(operating_points_of(evaluators), base, checkpoint if save_thresholds else None)
        for folder in {base, Path(out) if out else base}:
            write_json(folder / 'metrics.json', metrics)
            logger.info('scores: %s', folder / 'metrics.json')
    leave_processes(runner)
    return metrics


def _with_graph(
    cfg: RunConfig, checkpoint: str | Path | None
) -> tuple[RunConfig, tuple[DenseModel, dict[str, Any]] | None]:
    """Return the config, with batches of one image for an exported graph, which has no padding, and without transforms
    where they are in the graph; and the graph with its metainfo, None for any other checkpoint.
    """
    if checkpoint is None or not is_exported(checkpoint):
        return cfg, None
    model, info = read_exported(checkpoint)
    cfg = cfg.replaced(test_dataloader=one_by_one(cfg.test_dataloader, transforms=not model.network.preprocesses))
    return cfg, (model, {key: info.get(key, {}) for key in METAINFO})


def one_by_one(section: Mapping[str, Any], *, transforms: bool = True) -> dict[str, Any]:
    """Return a section of loaders, of one data set or of several by name, with batches of one image, and without
    transforms where these are in the graph.
    """
    if 'dataset' in section:
        dataset = section['dataset'] if transforms else {**section['dataset'], 'transforms': ()}
        return {**section, 'batch_size': 1, 'dataset': dataset}
    return {name: one_by_one(each, transforms=transforms) for name, each in section.items()}


def _save_points(points: Mapping[str, Any], folder: Path, checkpoint: str | Path | None) -> None:
    """Write the score thresholds of every head to `folder` and, given a checkpoint, to its model folder."""
    if points:
        write_json(folder / 'operating_points.json', points)
    for head, each in points.items():
        before, after = each['ece']
        better = f' instead of {before:.3f}' if after < before else ', and no other lowers it'
        text = '%s: thresholds of best F1 in %s; at temperature %.2f the calibration error is %.3f%s'
        logger.info(text, head, folder / 'operating_points.json', each['temperature'], after, better)
    if checkpoint is not None:
        model = model_folder_of(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent / 'model'
        set_operating_points(model, points)
        logger.info('the thresholds are in %s', model)


def _scores_folder(cfg: RunConfig, work_dir: str | Path | None, out: str | Path | None) -> Path:
    """Return the folder for the scores, and make it; it is never that of a training run."""
    if out and not work_dir:
        folder = Path(out)
    else:
        folder = work_folder(cfg, work_dir)
        if not work_dir or steps_in(folder) or (folder / 'metrics.csv').exists():
            folder = folder / 'test'
    make_folder(folder)
    return folder


class PredictionHook(Hook):
    """Show the progress of a test, and write the predictions of every image. Raises DiskError for the folders."""

    priority = 'LOW'

    def __init__(self, out: str | Path | None, show_dir: str | Path | None) -> None:
        self.out, self.show_dir = (Path(folder) if folder else None for folder in (out, show_dir))
        for folder in filter(None, (self.out, self.show_dir)):
            make_folder(folder, writable=True)  # before the first image
        self._paths: OutputPaths | None = None
        self._rows: dict[str, list[list[dict]]] = {}  # by file: the rows of each image of this rank
        self._bar = ExitStack()
        self._on_progress: Callable[[int, int], None] | None = None

    def before_test_epoch(self, runner: Any) -> None:
        if is_main_process():
            self._on_progress = self._bar.enter_context(progress('test'))

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.out or self.show_dir:
            self._write(runner, data_batch, outputs)
        if self._on_progress is not None:
            self._on_progress(batch_idx + 1, len(runner.test_dataloader))

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if not self.out:
            return
        ranks = all_gather_object(self._rows)
        for file in sorted({file for rows in ranks for file in rows} if is_main_process() else ()):
            turns = zip_longest(*(rows.get(file, ()) for rows in ranks), fillvalue=())  # ranks took turns
            merged = [row for images in turns for row in chain.from_iterable(images)]
            (self.out / file).parent.mkdir(parents=True, exist_ok=True)
            write_text(self.out / file, json.dumps(merged, allow_nan=False) + '\n')
            logger.info('%d predictions: %s', len(merged), self.out / file)

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def _write(self, runner: Any, batch: Batch, outputs: list[dict[str, Any]]) -> None:
        if self._paths is None:
            self._paths = OutputPaths(runner.test_dataloader)
        for img, meta, prediction in zip(batch.imgs, batch.metas, outputs, strict=True):
            prediction = on_cpu(prediction)
            folder, name = self._paths.path_of(meta, set_name(runner.test_dataloader))
            for head, record in prediction.items() if self.out else ():
                if isinstance(record, SemanticMap):
                    write_labels(record, self._paths.writable(self.out / folder / head / f'{name}.png'))
                if isinstance(record, Instances):
                    ids = category_ids(runner.metainfo, runner.network_model.tasks[head].field)
                    self._keep(folder / head, meta, record, ids)
                if isinstance(record, ImageClass):
                    names = runner.network_model.head_classes.get(head, ())
                    row = {'image_id': meta.image_id, **best_classes(record, names)}
                    self._rows.setdefault(f'{folder / head}/results.json', []).append([row])
            if self.show_dir:
                image = shown_image(img, meta, prediction)
                path = self._paths.writable(self.show_dir / folder / f'{name}.jpg')
                Image.fromarray(visualize.draw(image, prediction, runner.metainfo)).save(path, quality=92)

    def _keep(self, folder: Path, meta: Meta, record: Instances, ids: list[int | None]) -> None:
        """Keep the rows of one image; masks go to a file of their own."""
        for file, masks in (('results.json', False), ('results_segm.json', True)):
            if not masks or record.masks is not None:
                rows = results_of(record, meta.image_id, ids, masks=masks)
                self._rows.setdefault(f'{folder}/{file}', []).append(rows)


def best_classes(record: ImageClass, names: Sequence[str]) -> dict[str, list]:
    """Return the names and scores of the five best classes, best first."""
    best = record.scores.topk(min(5, len(record.scores)))
    classes = [names[index] if index < len(names) else f'class {index}' for index in best.indices.tolist()]
    return {'classes': classes, 'scores': [round(score, 6) for score in best.values.tolist()]}


def write_labels(record: SemanticMap, path: Path) -> None:
    """Write a label map as a PNG of 8 bits, or 16 where there are more than 256 classes."""
    labels = record.labels.numpy()
    Image.fromarray(labels.astype(np.uint8 if labels.dtype == np.uint8 else np.uint16)).save(path)
