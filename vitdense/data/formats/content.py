"""Detection labels of other formats as the content of a COCO annotation file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vitdense.data.files.images import UnreadableImage, image_size
from vitdense.errors import DataError

THREADS = 8  # that read image headers


class Problem(NamedTuple):
    """A label that cannot be used."""

    where: str  # the file, and the line or object in it
    reason: str


class CocoContent:
    """Images, objects and categories as COCO's annotation file has them, and the labels that cannot be used.

    `names` are the categories; their ids begin with `first_id`.
    """

    def __init__(self, names: Sequence[str], *, first_id: int = 1) -> None:
        self.first_id = first_id
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{'id': first_id + row, 'name': name} for row, name in enumerate(names)]
        self.problems: list[Problem] = []

    def add_image(self, file_name: str, size: tuple[int, int] | None) -> None:
        """Add an image of `size` (H, W); None: unknown. Objects that are added next are in it."""
        record: dict[str, Any] = {'id': len(self.images) + 1, 'file_name': file_name}
        self.images.append(record | ({'height': size[0], 'width': size[1]} if size else {}))

    def add_object(
        self,
        label: int,
        box: tuple[float, float, float, float],
        *,
        polygon: Sequence[float] | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an object of the category `names[label]` with an xyxy box in pixels, to the image that came last."""
        x1, y1, x2, y2 = box
        self.annotations.append(
            {
                'id': len(self.annotations) + 1,
                'image_id': len(self.images),
                'category_id': self.first_id + label,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': (x2 - x1) * (y2 - y1) if polygon is None else polygon_area(polygon),
                'iscrowd': int(crowd),
            }
            | ({} if polygon is None else {'segmentation': [list(polygon)]})
        )

    def add_problem(self, where: str, reason: str) -> None:
        """Add a label that cannot be used and is not among the objects."""
        self.problems.append(Problem(where, reason))

    def refuse_problems(self, path: Path) -> None:
        """Raise DataError when there are labels that cannot be used."""
        if self.problems:
            first = self.problems[0]
            raise DataError(
                f'{len(self.problems)} labels cannot be used, such as {first.where}: {first.reason}',
                where=str(path),
                why='training without them would treat these objects as background',
                fix=f'correct or remove them; all are listed by: python tools/check_data.py {path}',
            )

    def encoded(self) -> bytes:
        """Return the content of the COCO file."""
        keys = ('images', 'annotations', 'categories')
        return json.dumps({key: getattr(self, key) for key in keys}).encode('utf-8', 'surrogatepass')


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area inside a polygon x1, y1, x2, y2, ... (shoelace formula)."""
    xs, ys = polygon[0::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2


def sizes_of_images(folder: Path, names: Iterable[str]) -> list[tuple[int, int] | None]:
    """Return (H, W) of each image below `folder` from its header; None where it cannot be read."""

    def size(name: str) -> tuple[int, int] | None:
        try:
            return image_size(folder / name)
        except UnreadableImage:
            return None  # a data set has a policy for images that cannot be read

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(size, names))
