"""COCO annotations as flat arrays, which loader workers share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitdense.data.string_array import StringArray


class CocoArrays(NamedTuple):
    """Images and annotations of a COCO file: N images in its order, A annotations, sorted by image."""

    image_ids: StringArray  # N, as JSON: numbers or words
    file_names: StringArray  # N
    sizes: np.ndarray  # (N, 2) int32 (H, W); zero: not in the file
    starts: np.ndarray  # (N + 1,) int64: image i has the annotations starts[i] ... starts[i + 1] - 1
    ids: np.ndarray  # (A,) int64; the annotation's place in the file from 1, where some do not fit 64 bits
    labels: np.ndarray  # (A,) int32 row of the category, in the order of category ids
    boxes: np.ndarray  # (A, 4) float64 x, y, width, height as in the file
    areas: np.ndarray  # (A,) float64
    crowd: np.ndarray  # (A,) bool
    segments: StringArray  # A, as JSON ('' where there is none); empty without `masks`
    long_ids: StringArray  # A, the ids as in the file; empty where all of them fit 64 bits

    def name(self, row: int) -> int:
        """Return the id that an annotation has in the file."""
        return int(self.long_ids[row]) if len(self.long_ids.ends) else int(self.ids[row])


class CocoFileInfo(NamedTuple):
    """Categories and faults of a COCO file."""

    category_ids: list[int]  # sorted
    names: list[str]  # of the categories, in that order
    annotated: bool  # whether there is a list of annotations at all
    faults: list[list]  # [kind, annotation or image id, reason]
    counts: dict[str, int]  # faults by kind
    usable: int  # annotations, crowds left out, with a box of at least a pixel in their image
    corners: float | None  # the share of boxes that leave their image, where all fit it as xyxy
    fractions: bool  # whether all boxes lie in [0, 1], in images of many pixels
    root: int | None  # id of a category that no annotation has and that only groups the others


def sizes_of(arrays: CocoArrays) -> np.ndarray:
    """Return (A, 2) int32 (H, W): for each annotation the size of its image."""
    return np.repeat(arrays.sizes, np.diff(arrays.starts), axis=0)


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (A, 4) xyxy of x, y, width, height boxes, cut at the borders of images of `sizes` (A, 2) (H, W).

    Where the size is not known (zero) nothing is cut.
    """
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    known = (sizes > 0).all(1)
    limits = np.where(known[:, None], sizes[:, ::-1], np.inf)
    corners[known] = corners[known].clip(0)
    return np.minimum(corners, np.tile(limits, 2))


def is_empty(corners: np.ndarray) -> np.ndarray:
    """Return (A,) bool: the boxes (A, 4) xyxy that are less than one pixel wide or high."""
    return (corners[:, 2:] - corners[:, :2] < 1).any(1)
