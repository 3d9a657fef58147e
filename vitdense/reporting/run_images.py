"""Images that a run leaves behind. One that fails costs a warning, never the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from torch import Tensor
from torch.nn import functional

from vitdense import visualize
from vitdense.metrics.confusion import save_confusions
from vitdense.types import OBJECT_FIELDS, Batch, ImageClass, Meta, Target

logger = logging.getLogger('vitdense')


class RunImages:
    """Images of a run: `labels.jpg`, and `predictions.jpg`, `curves.png` and `confusion.png` of validations.

    `count` images are shown (a config's `sample_images`). Those of `predictions.jpg` come from all over the validation
    set, since neighbours are often frames of one film; each stands twice: with its target and with the prediction.
    Reconstructions stand beside the image and its visible patches. `fields` are those of the targets that the tasks
    read (none where the image is the target), `metainfo` has the names and colours of classes.
    """

    def __init__(self, work_dir: Path, metainfo: Mapping[str, Any], fields: set[str], *, count: int = 8) -> None:
        self.work_dir = work_dir
        self.metainfo = metainfo
        self.fields = fields
        self.count = count
        self._images: list[np.ndarray] = []
        self._titles: list[str] = []
        self._failed: set[str] = set()

    def write_labels(self, loader: Any) -> None:
        """Write the first training images with their targets."""
        self._try('labels.jpg', lambda path: self._draw_labels(loader, path))

    def begin_validation(self) -> None:
        """Discard the images of the previous validation."""
        self._images, self._titles = [], []

    def add(self, batch: Batch, predictions: Sequence[dict[str, Any]], number: int, num_batches: int) -> None:
        """Draw some images of batch `number` of `num_batches`."""
        count = share(self.count, number, num_batches)
        self._try('predictions.jpg', lambda path: self._draw_pairs(batch, predictions, count))

    def write_validation(self, metrics: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the images that were added, the confusions of the `metrics` and the curves of all `rows` so far."""
        if self._images:
            columns = 2 if len(self._images) <= 8 else 4
            self._try(
                'predictions.jpg',
                lambda path: visualize.contact_sheet(self._images, path, columns=columns, titles=self._titles),
            )
        self._try('confusion.png', lambda path: save_confusions(metrics, path.parent))
        self.write_curves(rows)

    def write_curves(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the losses and scores of all rows as curves."""
        self._try('curves.png', lambda path: visualize.plot_curves(rows, path))

    def _draw_labels(self, loader: Any, path: Path) -> None:
        samples = [loader.dataset.dataset[draw] for draw in islice(iter(loader.sampler), self.count)]
        images = [visualize.draw_target(s.img, only(s.target, self.fields), self.metainfo) for s in samples]
        visualize.contact_sheet(images, path)

    def _draw_pairs(self, batch: Batch, predictions: Sequence[dict[str, Any]], count: int) -> None:
        rows = zip(batch.imgs, batch.targets, batch.metas, predictions, strict=True)
        for img, target, meta, prediction in islice(rows, count):
            image = shown_image(img, meta, prediction)
            if self.fields:
                self._images.append(visualize.draw_target(image, only(target, self.fields), self.metainfo))
            self._images.append(visualize.draw(image, on_cpu(prediction), self.metainfo))
            self._titles += ['target', 'prediction'] if self.fields else ['image; visible patches; reconstruction']

    def _try(self, name: str, write: Callable[[Path], Any]) -> None:
        if name in self._failed or not is_main_process():
            return
        try:
            write(self.work_dir / name)
        except Exception as error:  # an image is not worth a run
            self._failed.add(name)
            logger.warning('%s could not be drawn: %s: %s', name, type(error).__name__, error)


def share(count: int, row: int, num_rows: int) -> int:
    """Return how many of `count` images come from row number `row` of `num_rows`, spread evenly."""
    return (row + 1) * count // num_rows - row * count // num_rows


def only(target: Target, fields: set[str]) -> Target:
    """Return the target with nothing but what belongs to `fields`; objects belong to 'labels'."""
    kept = {name for name in target._fields if name in fields or ('labels' in fields and name in OBJECT_FIELDS)}
    return Target(**{name: target.value_of(name) for name in kept})


def original_image(img: Tensor, size: tuple[int, int], orig_size: tuple[int, int]) -> Tensor:
    """Return the (3, H, W) uint8 image without padding, in the size that predictions have."""
    image = img[:, : size[0], : size[1]]
    if tuple(image.shape[-2:]) == tuple(orig_size):
        return image
    return functional.interpolate(image[None].float(), orig_size, mode='bilinear', antialias=True)[0].round().byte()


def shown_image(img: Tensor, meta: Meta, prediction: Mapping[str, Any]) -> Tensor:
    """Return the image that predictions are drawn on: in its original size; where all of them are about the image
    as a whole, as the input of the network, since an evaluation crop has an aspect of its own.
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
