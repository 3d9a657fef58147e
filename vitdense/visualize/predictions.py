"""Predictions or targets drawn on an image: tensors in, (H, W, 3) uint8 RGB arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vitdense.types import IGNORE, ImageClass, Instances, Prediction, Reconstruction, SemanticMap, Target
from vitdense.visualize.colors import GREY, ClassStyle
from vitdense.visualize.draw_boxes import draw_boxes
from vitdense.visualize.score_thresholds import MinScore, is_kept
from vitdense.visualize.text import BACKGROUND, LegendRow, add_legend, draw_label, font_size, line_width, percent

FIELDS = {SemanticMap: 'semantic', Instances: 'labels', ImageClass: 'image_label'}
SMALL = 320  # an image whose longest side is below is enlarged where text must fit
LIKELY = 5  # classes of a whole image that a legend lists, from 1 % on
LINE = (255, 255, 255)  # boundaries between regions


def draw(
    img: Tensor | np.ndarray,
    predictions: Mapping[str, Prediction],
    metainfo: Mapping[str, Any] | None = None,
    *,
    alpha: float = 0.5,
    legend: bool = True,
    min_score: MinScore = 'auto',
) -> np.ndarray:
    """Return the image with `predictions` (`{head: Prediction}`, in the image's own size) drawn on it.

    `img` is (3, H, W) or (H, W, 3) uint8 RGB. `metainfo` is `{'classes': {field: names}, 'palette': {field: rgb}}`
    as data sets give it; a head reads the field of its kind (`semantic`, `labels`, `image_label`) unless
    `metainfo['head_fields']` (`{head: field}`) says otherwise. `alpha` is the opacity of regions in [0, 1];
    objects below `min_score` are left out ('auto': see `score_thresholds.is_kept`).

    With a legend the image grows by a panel at its right, whose width depends on the image's size and the class
    names alone, and small images are enlarged by a whole factor. Without one the size is that of `img`.
    A reconstruction has no legend: it is placed right of the masked image, or returned alone.
    """
    painted = [item for item in predictions.values() if isinstance(item, Reconstruction)]
    if painted:
        return _reconstruction(img, painted[0], legend=legend)
    scene = _Scene(img, alpha=alpha, legend=legend)
    order = (SemanticMap, Instances, ImageClass)  # regions first, words last
    for name, prediction in sorted(predictions.items(), key=lambda item: order.index(type(item[1]))):
        field = ((metainfo or {}).get('head_fields') or {}).get(name, FIELDS[type(prediction)])
        if isinstance(prediction, SemanticMap):
            labels = array(prediction.labels)
            scene.semantic(labels, ClassStyle.of(metainfo, field, at_least=_num_classes(labels)))
        elif isinstance(prediction, Instances):
            keep = np.flatnonzero(is_kept(prediction, metainfo, name, min_score))
            scene.instances(prediction, metainfo, field, keep)
        else:
            scores = array(prediction.scores)
            names = ClassStyle.of(metainfo, field, at_least=len(scores)).names
            likely = [index for index in scores.argsort()[::-1][:LIKELY] if scores[index] >= 0.01] or [scores.argmax()]
            rows = [LegendRow(names[index], None, float(scores[index])) for index in likely]
            scene.headline(f'{rows[0].name} {percent(rows[0].share)}', names, rows)
    return scene.finish()


def draw_target(
    img: Tensor | np.ndarray,
    target: Target,
    metainfo: Mapping[str, Any] | None = None,
    *,
    alpha: float = 0.5,
    legend: bool = True,
) -> np.ndarray:
    """Return the image with its `target` drawn on it; ignored pixels are hatched in grey.

    Arguments and size as in `draw`.
    """
    scene = _Scene(img, alpha=alpha, legend=legend)
    if target.semantic is not None:
        labels = array(target.semantic).astype(np.int16)
        at_least = _num_classes(labels[labels != IGNORE])
        scene.semantic(labels, ClassStyle.of(metainfo, 'semantic', at_least=at_least), ignore=True)
    if target.boxes is not None:
        labels = np.zeros(len(target.boxes), np.int64) if target.labels is None else array(target.labels)
        style = ClassStyle.of(metainfo, 'labels', at_least=_num_classes(labels))
        crowd = np.zeros(len(labels), bool) if target.iscrowd is None else array(target.iscrowd)
        names = [style.names[label] + ' (crowd)' * bool(many) for label, many in zip(labels, crowd, strict=True)]
        if target.masks is not None:
            scene.masks(array(target.masks), style.colors[labels])
        scene.boxes(array(target.boxes), labels, names, style)
    if target.image_label is not None:
        names = ClassStyle.of(metainfo, 'image_label').names
        scene.headline(_label_words(array(target.image_label), names), names)
    return scene.finish()


def array(value: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor of any device as a numpy array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def as_image(img: Tensor | np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of a (3, H, W) tensor or an (H, W, 3) array. Raises ValueError for anything else."""
    image = array(img)
    if isinstance(img, Tensor) and image.ndim == 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f'an image is a (3, H, W) uint8 tensor or an (H, W, 3) uint8 array, '
            f'got {tuple(img.shape)} {image.dtype}; bring normalised images back to 0..255 first'
        )
    return np.ascontiguousarray(image)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Return (H * factor, W * factor, ...): every pixel becomes a square."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image


def boundaries(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Return (H, W) bool, True on pixels whose neighbour above or at the left (up to `width` away) is different."""
    edge = np.zeros(labels.shape, bool)
    for step in range(1, min(width + 1, *labels.shape)):
        edge[step:] |= labels[step:] != labels[:-step]
        edge[:, step:] |= labels[:, step:] != labels[:, :-step]
    return edge


def outlines(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Return (H, W) bool, True on pixels with another label up to `width` away above, below, at the left or right."""
    return boundaries(labels, width) | boundaries(labels[::-1, ::-1], width)[::-1, ::-1]


class _Scene:
    """Canvas: an image that is drawn on, and the rows of its legend."""

    def __init__(self, img: Tensor | np.ndarray, *, alpha: float, legend: bool) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha is an opacity in [0, 1], got {alpha}')
        image = as_image(img)
        self.size = image.shape[:2]  # (H, W) of the coordinates that come in
        self.factor = max(1, -(-SMALL // max(1, *self.size))) if legend else 1
        self.image = enlarge(image, self.factor) if self.factor > 1 else image.copy()
        self.alpha = alpha
        self.legend = legend
        self.sections: dict[str, list[LegendRow]] = {}  # rows of the legend, by what they are about
        self.names: list[str] = []
        self.words: list[str] = []  # about the whole image
        self.text = font_size(*self.image.shape[:2])
        self.line = line_width(*self.image.shape[:2])

    def semantic(self, labels: np.ndarray, style: ClassStyle, *, ignore: bool = False) -> None:
        """Paint (H, W) class numbers and list the classes that are there with their share of all pixels."""
        self._check(labels)
        count, num_classes = _counts(labels), len(style)
        shares = count / max(1, labels.size)
        self.names += style.names
        rows = self._section('regions')
        rows += [
            LegendRow(style.names[index], style.colors[index], shares[index])
            for index in np.flatnonzero(count[:num_classes])
        ]
        labels = enlarge(labels, self.factor)
        white, kind = num_classes, np.uint8 if num_classes < 253 and labels.dtype == np.uint8 else np.int16
        colors = np.concatenate([style.colors, np.array([LINE, GREY, (70, 70, 70)], np.uint8)])
        painted = np.where(boundaries(labels, max(1, self.line // 2)), kind(white), labels)
        if ignore and len(count) > IGNORE and count[IGNORE]:
            rows.append(LegendRow('ignored', GREY, shares[IGNORE], hatched=True))
            painted = np.where(labels == IGNORE, num_classes + 1 + self._hatch(), painted)
        self._paint(painted, colors)

    def instances(self, instances: Instances, metainfo: Mapping[str, Any] | None, field: str, keep: np.ndarray) -> None:
        """Draw the objects of the rows `keep`, the best on top."""
        scores = array(instances.scores)
        labels = array(instances.labels)[keep]
        style = ClassStyle.of(metainfo, field, at_least=_num_classes(labels))
        names = [f'{style.names[label]} {percent(score)}' for label, score in zip(labels, scores[keep], strict=True)]
        if instances.track_ids is not None:
            ids = array(instances.track_ids)[keep]
            names = [f'#{number} {name}' if number >= 0 else name for number, name in zip(ids, names, strict=True)]
        if instances.masks is not None:
            self.masks(array(instances.masks[keep]), style.colors[labels])
        self.boxes(array(instances.boxes)[keep], labels, names, style)

    def masks(self, masks: np.ndarray, colors: np.ndarray) -> None:
        """Tint and outline (N, H, W) masks in their (N, 3) colors, first on top; a semantic map keeps its colours."""
        if not len(masks):
            return
        self._check(masks[0])
        owner = np.full(self.size, len(masks), np.int32)
        for index in range(len(masks) - 1, -1, -1):
            owner[masks[index]] = index
        owner = enlarge(owner, self.factor)
        outside, table = owner == len(masks), np.concatenate([colors, np.array([GREY], np.uint8)])
        outline = outlines(owner, self.line) & ~outside
        if 'regions' not in self.sections:  # a painted map is not painted over
            self._paint(owner, table, keep=outside)
        self.image[outline] = table[owner[outline]]

    def boxes(self, boxes: np.ndarray, labels: np.ndarray, names: Sequence[str], style: ClassStyle) -> None:
        """Draw (N, 4) xyxy boxes of (N,) `labels` with their names, the first on top, and list the classes."""
        size = max(10, round(self.text * 0.85))
        self.image = draw_boxes(self.image, boxes * self.factor, names, style.colors[labels], size=size)
        self.names += style.names
        self._section('objects').extend(
            LegendRow(style.names[index], style.colors[index], count=int((labels == index).sum()))
            for index in np.unique(labels)
        )

    def headline(self, words: str, names: Sequence[str], rows: Sequence[LegendRow] | None = None) -> None:
        """Add a text about the whole image: `words` on it, or `rows` in the legend."""
        self.names += names
        self.words.append(words)
        self._section('image').extend([LegendRow(words, None)] if rows is None else rows)

    def finish(self) -> np.ndarray:
        """Return the image, with its legend or, without one, with the headlines in its upper left corner."""
        from PIL import Image

        rows = self._rows()
        if self.legend and (rows or self.names):
            return add_legend(self.image, rows, tuple(self.names), self.text)
        if self.words:
            canvas = Image.fromarray(self.image)
            for line, text in enumerate(self.words):
                draw_label(canvas, (0, (line + 1) * self.text * 1.5), text, color=(0, 0, 0), size=self.text)
            self.image = np.asarray(canvas)
        return self.image

    def _section(self, name: str) -> list[LegendRow]:
        return self.sections.setdefault(name, [])

    def _rows(self) -> list[LegendRow]:
        """Return the rows of all sections, the image first, each under its name where there is more than one."""
        order = sorted(self.sections, key=('image', 'regions', 'objects').index)
        headings = len(order) > 1
        return [
            row
            for name in order
            for row in [*([LegendRow(name, None, heading=True)] if headings else []), *self.sections[name]]
        ]

    def _check(self, labels: np.ndarray) -> None:
        if labels.shape != self.size:
            raise ValueError(f'the image is {self.size} (H, W), what is drawn on it is {labels.shape}')

    def _hatch(self) -> np.ndarray:
        """Return (H, W) int16 of slanted stripes: 0 and 1."""
        height, width = self.image.shape[:2]
        stripe = max(3, 2 * self.line)
        slant = np.arange(height, dtype=np.int32)[:, None] + np.arange(width, dtype=np.int32)
        return (slant // stripe % 2).astype(np.int16)

    def _paint(self, painted: np.ndarray, colors: np.ndarray, keep: np.ndarray | None = None) -> None:
        """Blend `colors[painted]` over the image: a table look-up and one pass of OpenCV."""
        if len(colors) <= 256:
            table = np.zeros((256, 1, 3), np.uint8)
            table[: len(colors), 0] = colors
            layer = cv2.applyColorMap(painted.astype(np.uint8, copy=False), table)
        else:
            layer = np.take(colors, painted, axis=0)
        blended = cv2.addWeighted(self.image, 1 - self.alpha, layer, self.alpha, 0)
        self.image = blended if keep is None else np.where(keep[..., None], self.image, blended)


def _reconstruction(img: Tensor | np.ndarray, prediction: Reconstruction, *, legend: bool) -> np.ndarray:
    image, painted = as_image(img), as_image(prediction.image)
    if not legend:
        return painted
    factor = max(1, -(-SMALL // max(1, *image.shape[:2])))
    return enlarge(side_by_side(image, painted, array(prediction.mask)), factor)


def _counts(labels: np.ndarray) -> np.ndarray:
    """Return the pixels of each label; torch counts uint8 without a conversion, unlike numpy."""
    return torch.from_numpy(np.ascontiguousarray(labels)).flatten().bincount().numpy()


def _num_classes(labels: np.ndarray) -> int:
    return int(labels.max()) + 1 if labels.size else 0


def _label_words(label: np.ndarray, names: Sequence[str]) -> str:
    """Return the name of one class number, or the names of the three largest entries of a soft or multi-label."""
    largest = (
        [int(label)] if label.ndim == 0 else [int(index) for index in label.argsort()[::-1][:3] if label[index] > 0]
    )
    return ', '.join(names[index] if index < len(names) else f'class {index}' for index in largest) or 'no label'


def side_by_side(image: np.ndarray, painted: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return `image`, the same with its `masked` pixels grey, and `painted`, side by side with gaps.

    `image` and `painted` are (H, W, 3) uint8, `masked` is (H, W) bool.
    """
    shown = np.where(masked[..., None], np.array(GREY, np.uint8), image)
    gap = np.full((image.shape[0], max(2, image.shape[1] // 64), 3), BACKGROUND, np.uint8)
    return np.concatenate([image, gap, shown, gap, painted], axis=1)
