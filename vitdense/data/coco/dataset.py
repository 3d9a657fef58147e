"""Detection data set from a COCO annotation file: boxes, labels, crowds and masks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from vitdense.arguments import check, interval
from vitdense.data.class_names import read_classes, read_palette
from vitdense.data.coco.arrays import clip_boxes, is_empty
from vitdense.data.coco.cache import open_coco
from vitdense.data.coco.faults import (
    check_box_layout,
    check_faults,
    check_has_images,
    describe_corrections,
    is_trainable,
    no_training_objects,
)
from vitdense.data.coco.parse import read_coco
from vitdense.data.files import images as decoding
from vitdense.data.files.image_check import evenly_spaced, warn_about_images
from vitdense.data.files.listing import check_folder
from vitdense.data.files.pairs import safe_below
from vitdense.data.files.similar_names import missing_files
from vitdense.data.files.splits import part_of
from vitdense.data.formats.open_labels import open_labels
from vitdense.data.shards.shard_files import data_folder
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.errors import DataError, did_you_mean, some
from vitdense.ops.masks import masks_of_runs, runs_of
from vitdense.types import Sample, Target

_logger = logging.getLogger('vitdense')


class CocoDetection:
    """Images below `images` with the objects of the COCO file `annotations`; both paths start at `root`.

    `annotations` may also be a folder of PASCAL VOC's XML files, YOLO's `data.yaml`, or a CSV file of boxes (see
    `vitdense.data.formats`); `split` then names the part of it (VOC: a list of ImageSets/Main; YOLO: a key).

    Labels are the rows of the categories in the order of their ids (COCO's own 80 have gaps up to 90), or of `classes`
    (names, or a file with them): then the objects of other categories are left out. `metainfo` has the names, made-up
    colours and, for results, the `category_ids`.

    In training, boxes are clipped to the image, and those of less than a pixel are dropped; the log counts them. With
    `evaluation`, transforms apply to the image only and the target is that of the file, in float64. Crowds (`iscrowd`)
    are in both; tasks must not use them as objects. Images without objects stay, unless `drop_empty`. `num_images`
    takes the first images of the rest, for overfitting tests. `part` is that of `splits.part_of`.

    `masks` adds the objects' masks, from polygons or RLE. An object without usable mask is an error, or its image is
    left out with `skip_unmasked`; the mask of a crowd without one is its box.

    A root category that only groups the others (Roboflow) and that no annotation has is no class.

    An image whose size differs from that in the file is an error (unless `check_sizes=False`), as is one outside of
    `images`. `cache` is that of `coco.cache.open_coco`.

    Raises DataError at construction for a file that is not COCO, boxes that are no numbers or are x1, y1, x2, y2,
    categories that do not exist, and a file without objects to train on; ConfigError for unknown `classes`.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        root: str | Path = '',
        classes: Sequence[str] | str | Path | None = None,
        masks: bool = False,
        skip_unmasked: bool = False,
        drop_empty: bool = False,
        num_images: int | None = None,
        check_sizes: bool = True,
        transforms: Transforms = (),
        evaluation: bool = False,
        name: str = '',
        cache: str | Path | bool = True,
        max_pixels: int = decoding.MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
        follow_links: bool = False,
        split: str | None = None,
        part: tuple[float, float] | None = None,
    ) -> None:
        root = Path(root)
        self.path, self.images = root / annotations, data_folder(root, images)
        self.name = name or self.images.name
        self.masks, self.evaluation = masks, evaluation
        self.check_sizes, self.max_pixels = check_sizes, max_pixels
        self.value_range = interval(value_range, 'CocoDetection.value_range')
        self.follow_links = follow_links
        self.pipeline = Pipeline(transforms)
        check_folder(self.images, 'images')
        content = open_labels(self.path, self.images, split)
        if content is None:
            self._arrays, self._info = open_coco(self.path, masks=masks, cache=cache)
        else:
            content.refuse_problems(self.path)
            self._arrays, self._info = read_coco(self.path, masks=masks, data=content.encoded())
        check_faults(self.path, self._info, ignored_kinds=('segmentation',) if skip_unmasked else ())
        check_box_layout(self.path, self._info)
        check_has_images(self.path, self._arrays)
        ids, names = self._info.category_ids, self._info.names
        self._ids = {name: number for number, name in zip(ids, names, strict=True) if number != self._info.root}
        self._names = list(self._ids) if classes is None else list(read_classes(classes, root=root).values())
        self._choose(self._names)
        rows = part_of(len(self._arrays.sizes), part, 'CocoDetection.part')
        self._rows = np.intersect1d(self._images(drop_empty, skip_unmasked), rows)[:num_images]
        if not evaluation:
            self._check_objects(all_used=classes is None and len(self._rows) == len(self._arrays.sizes))
        self._log_remarks()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        sample = self.read(index)
        if self.evaluation:
            return self.pipeline(sample._replace(target=Target()))._replace(target=sample.target)
        return self.pipeline(sample, self)

    def read(self, index: int) -> Sample:
        """Return a sample before the transforms."""
        row = int(self._rows[index])
        path = self._file(row)
        sample = decoding.read_sample(
            path, self.image_id(row), self.name, max_pixels=self.max_pixels, value_range=self.value_range
        )
        self._check_size(row, sample.meta.size, path)
        return sample._replace(target=self._target(row, sample.meta.size))

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.images, [self._arrays.file_names[row] for row in self._rows.tolist()]

    def extent(self) -> tuple[list[tuple[int, int]], int]:
        """Return the sizes (H, W) that images have, and the largest number of objects in one."""
        sizes = np.unique(self._arrays.sizes[self._rows], axis=0)
        counts = np.diff(self._arrays.starts)[self._rows]
        return [tuple(size) for size in sizes.tolist() if min(size) > 0], int(counts.max(initial=0))

    def object_counts(self, *, of_one_class: bool = False) -> np.ndarray:
        """Return the number of objects in each image (N,) of the chosen classes, without crowds.

        With `of_one_class`, that of the most frequent class of the image. In training empty boxes do not count.
        """
        chosen = self._chosen() & (~self._arrays.crowd if self.evaluation else is_trainable(self._arrays))
        image = self._images_of_annotations()[chosen]
        if not of_one_class:
            return np.bincount(image, minlength=len(self._arrays.sizes))[self._rows]
        most = np.zeros(len(self._arrays.sizes), np.int64)
        count = len(self.metainfo['classes']['labels']) + 1
        cells, counts = np.unique(image * count + self._label_of[self._arrays.labels[chosen]], return_counts=True)
        np.maximum.at(most, cells // count, counts)
        return most[self._rows]

    def missing(self) -> list[str]:
        """Return the image files that do not exist."""
        data, ends = self._arrays.file_names.data.tobytes(), self._arrays.file_names.ends
        starts = np.append(0, ends[:-1])[self._rows].tolist()
        return missing_files(self.images, (data[i:j] for i, j in zip(starts, ends[self._rows].tolist(), strict=True)))

    def _check_objects(self, *, all_used: bool) -> None:
        """Raise DataError when the chosen images have no object of the chosen classes to train on."""
        if self._info.usable if all_used else self.object_counts().any():
            return
        used = np.isin(self._images_of_annotations(), self._rows) & self._chosen()
        raise no_training_objects(self.path, self._arrays, chosen=int(used.sum()))

    def _chosen(self) -> np.ndarray:
        """Return (A,) bool: the annotations of the chosen classes."""
        return self._label_of[self._arrays.labels] >= 0

    def _images_of_annotations(self) -> np.ndarray:
        return np.repeat(np.arange(len(self._arrays.sizes)), np.diff(self._arrays.starts))

    def image_id(self, row: int) -> int | str:
        """Return the id of an image of the file."""
        return json.loads(self._arrays.image_ids[row])

    def set_classes(self, classes: Mapping[str, Sequence[str]]) -> None:
        """Number the labels as in `classes` ({field: names}), by name: annotation files may have different ids.

        Raises ConfigError when `classes` lacks a class of this data set.
        """
        names = list(classes.get('labels', self._names))
        unknown = [name for name in self._names if name not in names]
        near = did_you_mean(unknown[0], names) if unknown else ''
        why = f'they are not among the {len(names)} classes of training, {some(names, 8)}{near}'
        fix = 'use the same category names in both files, or say which to use: classes=[...]'
        check(not unknown, f'{self.path}: classes', some(unknown, 3), why, fix)
        self._choose(names, missing=True)

    def check(self, limit: int | None = 64, *, training: bool = False) -> int:
        """Check the size of `limit` images, evenly spaced (None: all), and return the number of images checked.

        Meant for the start of a run. Raises DataError for a size that differs from the annotation file.
        """
        rows = [int(self._rows[index]) for index in evenly_spaced(len(self), limit)]
        warn_about_images((self._file(row) for row in rows), self.value_range, _logger, self.name)
        for row in rows:
            path = self._file(row)
            try:
                self._check_size(row, decoding.image_size(path, max_pixels=self.max_pixels), path)
            except decoding.UnreadableImage:
                continue  # a bad image has its own policy (SeededDataset)
        return len(rows)

    def _file(self, row: int) -> Path:
        """Return the path of an image. Raises DataError for one outside of the folder."""
        name, where = self._arrays.file_names[row], f'{self.path} image {self.image_id(row)}'
        return safe_below(self.images, name, where=where, follow_links=self.follow_links)

    def _choose(self, names: Sequence[str], *, missing: bool = False) -> None:
        """Set labels and `metainfo` so that label k is `names[k]`."""
        ids = self._ids
        unknown = [name for name in names if name not in ids and not missing]
        near = did_you_mean(unknown[0], ids) if unknown else ''
        why = f'the file has no such category; its categories are {some(list(ids), 12)}{near}'
        check(not unknown, f'{self.path}: classes', some(unknown, 3), why, 'choose among them, or leave classes out')
        numbers = {name: label for label, name in enumerate(names)}
        by_row = zip(self._info.category_ids, self._info.names, strict=True)
        labels = [-1 if number == self._info.root else numbers.get(name, -1) for number, name in by_row]
        self._label_of = np.array(labels, np.int64)
        self.metainfo: dict[str, Any] = {
            'classes': {'labels': list(names)},
            'palette': {'labels': read_palette(None, names)},
            'category_ids': {'labels': [ids.get(name) for name in names]},
        }

    def _images(self, drop_empty: bool, skip_unmasked: bool) -> np.ndarray:
        """Return the rows of the images to use."""
        arrays = self._arrays
        if not drop_empty and not self.masks:
            return np.arange(len(arrays.sizes))
        image = self._images_of_annotations()
        keep = np.ones(len(arrays.sizes), bool)
        chosen = self._chosen() & ~arrays.crowd
        if drop_empty:
            good = chosen & is_trainable(arrays)
            keep = np.bincount(image[good], minlength=len(keep)) > 0
        if self.masks:
            bare = chosen & (np.diff(arrays.segments.ends, prepend=0) == 0)
            keep[image[bare]] = False
            if bare.any() and not skip_unmasked:
                raise DataError(
                    f'{int(bare.sum())} of {len(bare)} annotations have no segmentation',
                    where=f'{self.path}, such as annotation {arrays.name(int(bare.argmax()))}',
                    why='masks=True needs the mask of every object',
                    fix='leave masks out, or write skip_unmasked=True to leave out the images of such objects',
                )
        if not keep.any():
            raise DataError(
                'no image is left',
                where=str(self.path),
                why=f'the file lists {len(keep)} images; drop_empty and skip_unmasked leave none of them',
                fix='check the file with tools/check_data.py, or leave these options out',
            )
        if not keep.all():
            _logger.info('%s: %d of %d images are left out', self.name, int((~keep).sum()), len(keep))
        return np.flatnonzero(keep)

    def _target(self, row: int, size: tuple[int, int]) -> Target:
        """Return the objects of an image: as in the file for evaluation, clipped and non-empty for training."""
        arrays = self._arrays
        rows = np.arange(arrays.starts[row], arrays.starts[row + 1])
        rows = rows[self._label_of[arrays.labels[rows]] >= 0]
        if not self._info.annotated:
            return Target()
        if self.evaluation:
            boxes = arrays.boxes[rows] + np.pad(arrays.boxes[rows, :2], ((0, 0), (2, 0)))  # x, y, w, h -> x, y, x2, y2
        else:
            boxes = clip_boxes(arrays.boxes[rows], np.tile(size, (len(rows), 1)))
            rows, boxes = rows[~is_empty(boxes)], boxes[~is_empty(boxes)].astype(np.float32)
        with np.errstate(over='ignore'):
            area = arrays.areas[rows] if self.evaluation else arrays.areas[rows].astype(np.float32)
        return Target(
            boxes=tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format='XYXY', canvas_size=size),
            labels=torch.from_numpy(self._label_of[arrays.labels[rows]]),
            masks=tv_tensors.Mask(self._masks(rows, size)) if self.masks else None,
            iscrowd=torch.from_numpy(arrays.crowd[rows]),
            area=torch.from_numpy(area),
            annotation_ids=torch.from_numpy(arrays.ids[rows]),
        )

    def _masks(self, rows: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Return (N, H, W) bool."""
        runs = []
        for row in rows.tolist():
            text = self._arrays.segments[row]
            x, y, width, height = self._arrays.boxes[row].tolist()
            box = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            try:
                runs.append(runs_of(json.loads(text) if text else box, size))
            except ValueError as error:  # the file was checked with the image sizes stated in it
                raise DataError(
                    f'annotation {self._arrays.name(row)}: {error}',
                    where=str(self.path),
                    why='its segmentation does not fit the image',
                    fix='check the file with tools/check_data.py',
                ) from None
        return masks_of_runs(runs, size)

    def _check_size(self, row: int, size: tuple[int, int], path: Path) -> None:
        stated = tuple(self._arrays.sizes[row].tolist())
        if stated == size or stated == (0, 0) or not self.check_sizes:
            return
        turned = stated == size[::-1]
        raise DataError(
            f'{path.name}: (H, W) {size}, but the annotation file says {stated}',
            where=f'{self.path} image {self.image_id(row)}',
            why='boxes drawn on an image of another size do not lie on the objects'
            + ('; it looks turned: an EXIF flag was ignored when it was annotated' if turned else ''),
            fix='annotate the image as it is (upright), correct width and height, or write check_sizes=False if the '
            'boxes are right all the same',
        )

    def summary(self) -> str:
        """Return the numbers of images, objects and classes as text."""
        used = self._chosen() & ~self._arrays.crowd
        used &= np.isin(self._images_of_annotations(), self._rows)
        names = self.metainfo['classes']['labels']
        counts = np.bincount(self._label_of[self._arrays.labels[used]], minlength=len(names))
        absent = [name for name in self._names if not counts[names.index(name)]]
        text = f'{len(self):,} images, {int(counts.sum()):,} objects of {len(self._names) - len(absent)} classes'
        if absent and self._info.annotated:
            text += f'; no object of {", ".join(absent[:5])}{", ..." if len(absent) > 5 else ""}'
        return text

    def _log_remarks(self) -> None:
        """Log corrections, and the root category that is left out."""
        text = describe_corrections(self._info, evaluation=self.evaluation)
        if text:
            _logger.warning('%s: %s', self.path.name, text)
        if self._info.root is not None:
            name = dict(zip(self._info.category_ids, self._info.names, strict=True))[self._info.root]
            text = "%s: category '%s' (id %d) is left out: no object has it, it only groups the others"
            _logger.info(text, self.path.name, name, self._info.root)
