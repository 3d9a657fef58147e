"""Images that a run leaves behind. One that fails costs a warning, never the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor
from torch.nn import functional

from vitdense import visualize
from vitdense.metrics.confusion import save_confusions
from vitdense.types import Batch, ImageClass, Meta, Target

logger = logging.getLogger('vitdense')


class ImageHook(Hook):
    """Write `labels.jpg` before the first step, and `predictions.jpg`, `curves.png` and `confusion.png` at validations.

    `count` images are shown (a config's `sample_images`; 0 there leaves all of these files out). Those of
    `predictions.jpg` come from all over the validation set, since neighbours are often frames of one film; each stands
    twice: with its truth and with the prediction. Reconstructions stand beside the image and what was shown of it.
    """

    priority = 'LOW'

    def __init__(self, work_dir: Path, *, count: int = 8) -> None:
        self.work_dir = work_dir
        self.count = count
        self._images: list[np.ndarray] = []
        self._titles: list[str] = []
        self._failed: set[str] = set()

    def before_train(self, runner: Any) -> None:
        if is_main_process() and runner.iter == 0:
            self._try('labels.jpg', lambda path: self._draw_labels(runner, path))

    def before_val_epoch(self, runner: Any) -> None:
        self._images, self._titles = [], []

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if is_main_process():
            number = share(self.count, batch_idx, len(runner.val_dataloader))
            self._try('predictions.jpg', lambda path: self._draw_pairs(runner, data_batch, outputs, number))

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if not is_main_process():
            return
        if self._images:
            columns = 2 if len(self._images) <= 8 else 4
            self._try(
                'predictions.jpg',
                lambda path: visualize.contact_sheet(self._images, path, columns=columns, titles=self._titles),
            )
        self._try('confusion.png', lambda path: save_confusions(runner.val_evaluator.metrics, path.parent))
        self._curves(runner)

    def after_train(self, runner: Any) -> None:
        if is_main_process():
            self._curves(runner)

    def _curves(self, runner: Any) -> None:
        self._try('curves.png', lambda path: visualize.plot_curves(runner.history.rows, path))

    def _draw_labels(self, runner: Any, path: Path) -> None:
        loader = runner.train_dataloader
        samples = [loader.dataset.dataset[draw] for draw in islice(iter(loader.sampler), self.count)]
        fields = read_fields(runner)
        images = [visualize.draw_target(sample.img, only(sample.target, fields), runner.metainfo) for sample in samples]
        visualize.contact_sheet(images, path)

    def _draw_pairs(self, runner: Any, batch: Batch, outputs: list[dict[str, Any]], number: int) -> None:
        fields = read_fields(runner)
        rows = zip(batch.imgs, batch.targets, batch.metas, outputs, strict=True)
        for img, target, meta, prediction in islice(rows, number):
            image = shown_image(img, meta, prediction)
            if fields:
                self._images.append(visualize.draw_target(image, only(target, fields), runner.metainfo))
            self._images.append(visualize.draw(image, on_cpu(prediction), runner.metainfo))
            self._titles += ['truth', 'prediction'] if fields else ['image; what was seen; what was painted']

    def _try(self, name: str, write: Callable[[Path], Any]) -> None:
        if name in self._failed:
            return
        try:
            write(self.work_dir / name)
        except Exception as error:  # an image is not worth a run
            self._failed.add(name)
            logger.warning('%s could not be drawn: %s: %s', name, type(error).__name__, error)


def share(count: int, row: int, num_rows: int) -> int:
    """Return how many of `count` things fall to row number `row`, when `num_rows` share them evenly."""
    return (row + 1) * count // num_rows - row * count // num_rows


def read_fields(runner: Any) -> set[str]:
    """Return the fields of targets that the tasks of the model read; none where images are their own truth."""
    return {task.field for task in runner.network_model.tasks.values() if task.field}


def only(target: Target, fields: set[str]) -> Target:
    """Return the target with nothing but what belongs to `fields`; objects belong to 'labels'."""
    objects = ('boxes', 'labels', 'masks', 'iscrowd', 'area', 'annotation_ids')
    kept = {name for name in target._fields if name in fields or ('labels' in fields and name in objects)}
    return Target(**{name: target.value_of(name) for name in kept})


def original_image(img: Tensor, size: tuple[int, int], orig_size: tuple[int, int]) -> Tensor:
    """Return the (3, H, W) uint8 image without padding, in the size that predictions have."""
    image = img[:, : size[0], : size[1]]
    if tuple(image.shape[-2:]) == tuple(orig_size):
        return image
    return functional.interpolate(image[None].float(), orig_size, mode='bilinear', antialias=True)[0].round().byte()


def shown_image(img: Tensor, meta: Meta, prediction: Mapping[str, Any]) -> Tensor:
    """Return the image that predictions are drawn on: in its original size; where all of them are about the image
    as a whole, as the network saw it, since an evaluation crop has an aspect of its own.
    """
    whole = all(isinstance(record, ImageClass) for record in prediction.values())
    return original_image(img, meta.unpadded_size, meta.unpadded_size if whole else meta.orig_size)


def on_cpu(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Return one image's predictions with their tensors on the CPU."""
    return {
        head: type(record)(*(value.cpu() if isinstance(value, Tensor) else value for value in record))
        for head, record in prediction.items()
    }


def write_sample(dataset: Any, path: Path) -> Path:
    """Return the file of the first image of a data set; one that has no files gets its first image written."""
    sample = dataset[0]
    if sample.meta.path and Path(sample.meta.path).is_file():
        return Path(sample.meta.path)
    from PIL import Image

    Image.fromarray(sample.img.as_subclass(torch.Tensor).permute(1, 2, 0).contiguous().numpy()).save(path)
    return path
