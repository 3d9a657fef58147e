"""Images and categories of a COCO annotation file, and checks of its overall structure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.errors import DataError, some
from vitdense.ops.coco_numbers import image_id, shown, whole

NO_PARENT = (None, '', 'none', 'None')  # supercategory of a root category


def parse(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """Return the content of an annotation file, `data` or else read from `path`.

    Raises DataError for anything but a COCO file of annotated objects; the message names the kind of file if known.
    """
    try:
        content = json.loads(path.read_bytes() if data is None else data)
    except OSError as error:
        raise DataError(
            f'cannot read {path.name}', where=str(path), why=str(error), fix='check the path, and data_root=...'
        ) from None
    except (ValueError, RecursionError) as error:
        raise no_coco(path, f'it is not JSON: {error}') from None
    if isinstance(content, list) and content and isinstance(content[0], dict) and 'score' in content[0]:
        raise no_coco(path, 'it is a list of predictions with scores: a COCO results file')
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise no_coco(path, "there is no list 'images' in it")
    annotations = content.get('annotations')
    if annotations is not None and not isinstance(annotations, list):
        raise no_coco(path, "'annotations' is not a list")
    _refuse_other_kinds(path, annotations or [])
    return content


def _refuse_other_kinds(path: Path, annotations: Sequence[Any]) -> None:
    first = next((record for record in annotations if isinstance(record, dict)), {})
    if 'segments_info' in first:
        raise DataError(
            f'{path.name} is a COCO panoptic file',
            where=str(path),
            why='its annotations are segments of panoptic PNGs (segments_info), without a box and a mask of their own',
            fix='give the file of the objects, such as instances_val2017.json; docs/your_own_data.md says what can be '
            'done with panoptic PNGs',
        )
    if 'caption' in first and 'bbox' not in first:
        raise no_coco(path, 'its annotations are captions, without boxes', fix='give the instances file of the images')


def read_categories(content: Mapping[str, Any], path: Path) -> tuple[dict[int, str], int | None]:
    """Return the names of the categories by id, and the id of an unused root category (None: there is none).

    Raises DataError for categories without a whole number as id, and for ids and names that occur twice.
    """
    listed = content.get('categories')
    if not isinstance(listed, list) or not listed:
        raise no_coco(path, "there is no list 'categories' in it")
    records: dict[int, Mapping[str, Any]] = {}
    for record in listed:
        number = whole(record.get('id')) if isinstance(record, dict) else None
        if number is None:
            raise no_coco(path, f'a category needs a whole number as id: {str(record)[:80]}')
        if number in records:
            raise _twice(path, f'have the id {shown(number)}')
        records[number] = record
    names = {
        number: str(record['name'] if record.get('name') is not None else number) for number, record in records.items()
    }
    root = _root_category(records, names, content.get('annotations') or [])
    counted = Counter(name for number, name in names.items() if number != root)
    for name in names.values():
        if counted[name] > 1:
            same = [each for each in names if names[each] == name]
            raise _twice(path, f'are called {name!r}: those with the ids {some([shown(each) for each in same])}')
    return names, root


def _twice(path: Path, what: str) -> DataError:
    return DataError(
        f'several categories {what}',
        where=str(path),
        why='results are reported, saved and compared by name and by id',
        fix='give every category a name and an id of its own',
    )


def _root_category(
    records: Mapping[int, Mapping[str, Any]], names: Mapping[int, str], annotations: Sequence[Any]
) -> int | None:
    """Return the id of the category that only groups the others, as Roboflow's exports begin with, or None.

    It has no supercategory, all others share one, which is its name (or its name is that of another: a project that is
    called like a class), and no annotation has it.
    """
    tops = [number for number, record in records.items() if record.get('supercategory') in NO_PARENT]
    if len(tops) != 1 or len(records) < 2 or 'supercategory' not in records[tops[0]]:
        return None
    root = tops[0]
    parents = {str(record['supercategory']) for number, record in records.items() if number != root}
    others = [name for number, name in names.items() if number != root]
    if len(parents) > 1 or not (names[root] in parents or names[root] in others):
        return None
    used = any(isinstance(record, dict) and whole(record.get('category_id')) == root for record in annotations)
    return None if used else root


def read_images(content: Mapping[str, Any], path: Path) -> tuple[list[dict[str, Any]], list[int | str]]:
    """Return the records of the images and their ids. Raises DataError for ids that are none, or occur twice."""
    records = content['images']
    ids = [image_id(record.get('id')) if isinstance(record, dict) else None for record in records]
    for record, name in zip(records, ids, strict=True):
        if name is None:
            raise no_coco(path, f'an image needs an id, a whole number or a word: {str(record)[:80]}')
    double = [name for name, count in Counter(ids).items() if count > 1]
    if double:
        raise DataError(
            f'{len(double)} image ids occur twice, such as {shown(double[0])}',
            where=str(path),
            why='annotations and results name their image by its id',
            fix='give every image an id of its own',
        )
    return records, ids


def no_coco(path: Path, why: str, *, fix: str = '') -> DataError:
    """Return the error for a file of another kind."""
    return DataError(
        f'{path.name} is no COCO annotation file',
        where=str(path),
        why=why,
        fix=fix or 'give a file with images, annotations and categories; docs/your_own_data.md shows one',
    )
