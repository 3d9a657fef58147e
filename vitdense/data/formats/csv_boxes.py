"""A CSV file with a box on each line, as TensorFlow's object detection tools and RetinaNet read it.

Columns are found by the names in the first line: `filename, width, height, class, xmin, ymin, xmax, ymax`, or other
usual names of these; without such a line they are `path, x1, y1, x2, y2, class`. Pixels are counted from 0.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitdense.data.files.listing import read_text
from vitdense.data.formats.content import CocoContent, sizes_of_images
from vitdense.errors import DataError

MAX_BYTES = 2**30
COLUMNS = {
    'image': ('filename', 'image', 'image_path', 'path', 'file', 'file_name', 'image_name', 'image_id'),
    'class': ('class', 'label', 'name', 'category', 'class_name'),
    'x1': ('xmin', 'x1', 'x_min', 'left'),
    'y1': ('ymin', 'y1', 'y_min', 'top'),
    'x2': ('xmax', 'x2', 'x_max', 'right'),
    'y2': ('ymax', 'y2', 'y_max', 'bottom'),
}
SIDES = ('x1', 'y1', 'x2', 'y2')
WITHOUT_HEADER = ('image', *SIDES, 'class')


def read_csv(path: Path, images: Path) -> CocoContent:
    """Return the labels of a CSV file; names of images start at the folder `images`.

    Classes are the names in the file, sorted. A line with an image alone is an image without objects. Raises DataError
    when the columns cannot be recognised.
    """
    rows, columns, first = _rows(path)
    boxes: dict[str, list[tuple[int, Sequence[str]]]] = {}
    for number, row in enumerate(rows, start=first):
        if len(row) > max(columns.values()):
            boxes.setdefault(row[columns['image']].strip(), []).append((number, row))
    named = {row[columns['class']].strip() for lines in boxes.values() for _, row in lines}
    classes = sorted(named - {''})
    if not classes:
        raise DataError(
            'there is no box in the file', where=str(path), why='no line names a class', fix='check the columns'
        )
    content = CocoContent(classes)
    for name, size in zip(boxes, sizes_of_images(images, boxes), strict=True):
        content.add_image(name, size)
        for number, row in boxes[name]:
            _add_object(content, [row[columns[side]].strip() for side in SIDES], row[columns['class']].strip(), number)
    return content


def is_boxes(path: Path) -> bool:
    """Whether a CSV file has the columns of boxes."""
    try:
        return bool(_rows(path)[0])
    except DataError:
        return False


def _add_object(content: CocoContent, words: Sequence[str], name: str, line: int) -> None:
    if not name and not any(words):
        return
    names = [category['name'] for category in content.categories]
    try:
        x1, y1, x2, y2 = map(float, words)
    except ValueError:
        return content.add_problem(f'line {line}', f'corners are not four numbers: {", ".join(words)}')
    if name not in names or not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        reason = f'no class, or no corners xmin, ymin, xmax, ymax: {", ".join(words)}'
        return content.add_problem(f'line {line}', reason)
    content.add_object(names.index(name), (x1, y1, x2, y2))


def _rows(path: Path) -> tuple[list[list[str]], Mapping[str, int], int]:
    """Return the lines of boxes, the index of each column, and the number of the first line."""
    try:
        text = read_text(path, MAX_BYTES)
        head = text[:10_000]
        delimiter = max(',;\t', key=head.count)
        rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f'{path.name} cannot be read', where=str(path), why=str(error), fix='save it as CSV in UTF-8'
        ) from error
    header = [word.strip().lower() for word in rows[0]] if rows else []
    columns = {
        key: next((header.index(name) for name in names if name in header), -1) for key, names in COLUMNS.items()
    }
    if min(columns.values()) >= 0:
        return rows[1:], columns, 2
    if len(header) == len(WITHOUT_HEADER) and all(_is_number(word) for word in header[1:5] if word):
        return rows, {key: index for index, key in enumerate(WITHOUT_HEADER)}, 1
    missing = [key for key, index in columns.items() if index < 0]
    raise DataError(
        f'columns of {path.name} are not known: {", ".join(missing)} missing',
        where=f'{path}, line 1',
        why=f'its first line is {", ".join(header[:10])}',
        fix='name the columns filename, class, xmin, ymin, xmax, ymax',
    )


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
