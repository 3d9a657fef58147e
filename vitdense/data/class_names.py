"""Class names and colours: of well-known data sets, from a list or from a file."""

from __future__ import annotations

import colorsys
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.arguments import check
from vitdense.data.files.listing import read_text
from vitdense.errors import ConfigError, did_you_mean

HERE = Path()
Color = tuple[int, int, int]
_GOLDEN_ANGLE = 0.618034  # of the colour circle: neighbours in the list lie far apart on it
# ADE20K: the first synonym of each row of objectInfo150.csv; the others as their papers list them, in label order
ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider,
car, truck, bus, train, motorcycle, bicycle
"""
VOC = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
"""
CAMVID = """
sky, building, pole, road, pavement, tree, signsymbol, fence, car, pedestrian, bicyclist
"""

NAMES = {
    name: tuple(' '.join(word.split()) for word in text.split(','))
    for name, text in {'ade20k': ADE20K, 'camvid': CAMVID, 'cityscapes': CITYSCAPES, 'voc': VOC}.items()
}


def voc_colors() -> list[list[int]]:
    """Return the 21 colours of the PASCAL VOC devkit: bits 0, 3, 6, ... of a label are the high bits of red."""
    channels = range(3)
    return [
        [sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in channels]
        for label in range(21)
    ]


PALETTES = {
    'voc': voc_colors(),
    'cityscapes': [
        [128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156], [190, 153, 153], [153, 153, 153], [250, 170, 30],
        [220, 220, 0], [107, 142, 35], [152, 251, 152], [70, 130, 180], [220, 20, 60], [255, 0, 0], [0, 0, 142],
        [0, 0, 70], [0, 60, 100], [0, 80, 100], [0, 0, 230], [119, 11, 32],
    ],
    'camvid': [
        [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0], [192, 128, 128],
        [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
    ],
}  # fmt: skip


def read_classes(classes: Sequence[str] | Mapping[int, str] | str | Path, *, root: Path = HERE) -> dict[int, str]:
    """Return `{label in the files: class name}`, in the order of the classes.

    `classes` is a list of names, a map {label: name}, the name of a well-known data set ('ade20k', 'camvid',
    'cityscapes', 'voc'), or a file below `root`: `.txt` with one name per line, `.csv` with a column `Name` (of
    synonyms 'door;double door' the first counts, as in ADE20K's objectInfo150.csv), `.json` or `.yaml` with a list or
    a map, at the top or under `classes` or `names`. Raises ConfigError for anything else, and for double names.
    """
    where = 'classes'
    if isinstance(classes, (str, Path)):
        where = f'classes={str(classes)!r}'
        classes = NAMES.get(str(classes)) or _read(root / classes, where)
    names = _as_map(classes, where)
    double = sorted(name for name, count in Counter(names.values()).items() if count > 1)
    why = 'results are reported, saved and compared by class name: none may appear twice'
    check(bool(names) and not double, where, double, why, 'give every class one name of its own')
    return names


def read_palette(
    palette: Sequence[Sequence[int]] | str | Path | None, names: Sequence[str], *, root: Path = HERE
) -> list[list[int]]:
    """Return one colour [r, g, b] for each class name.

    `palette` is a list, a file as `read_classes` reads, or the name of a well-known data set. None: the data set's own
    colours where the names are exactly those of a well-known one, else made up.
    """
    if palette is None:
        known = next((PALETTES[key] for key in PALETTES if list(NAMES[key]) == list(names)), None)
        return [list(color) for color in known or distinct_colors(len(names))]
    where = 'palette'
    if isinstance(palette, (str, Path)):
        where = f'palette={str(palette)!r}'
        palette = PALETTES.get(str(palette)) or _read(root / palette, where)
    holds = isinstance(palette, (Mapping, Sequence)) and not isinstance(palette, str)
    why = 'a palette is a list of colours, or a map from class names to colours'
    check(holds, where, palette, why, 'write [[128, 64, 128], ...], one colour per class')
    colors = [as_color(color, where) for color in (palette.values() if isinstance(palette, Mapping) else palette)]
    why = f'the palette holds one colour per class, in the order of the {len(names)} classes'
    fix = 'add or remove colours, or leave the palette out: colours are then made up'
    check(len(colors) == len(names), f'{where}: colours', len(colors), why, fix)
    return [list(color) for color in colors]


def distinct_colors(count: int) -> list[list[int]]:
    """Return `count` distinct colours [r, g, b]; a class keeps its colour when classes are added."""
    colors = []
    for index in range(count):
        value = (1.0, 0.75, 0.55)[index // 2 % 3]
        saturation = (0.85, 0.55)[index % 2]
        rgb = colorsys.hsv_to_rgb(0.6 + index * _GOLDEN_ANGLE, saturation, value)
        colors.append([round(channel * 255) for channel in rgb])
    return colors


def as_color(color: Any, where: str) -> Color:
    """Return (r, g, b) of a sequence, or of a string such as '128, 64, 0'. Raises ConfigError."""
    if isinstance(color, str):
        color = color.replace(',', ' ').split()
    try:
        red, green, blue = (int(channel) for channel in color)
        if not all(0 <= channel <= 255 for channel in (red, green, blue)):
            raise ValueError('each number lies in 0..255')
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'{color!r} is not a colour',
            where=where,
            why=str(error),
            fix='write colours as [red, green, blue] with whole numbers 0..255',
        ) from error
    return red, green, blue


def _as_map(classes: Any, where: str) -> dict[int, str]:
    if isinstance(classes, Mapping):
        classes = classes.get('classes', classes.get('names', classes))
    try:
        if isinstance(classes, str):
            raise TypeError(f'it is one word, {classes[:40]!r}')
        if isinstance(classes, Mapping):
            return {label: str(classes[key]) for label, key in sorted((int(key), key) for key in classes)}
        return {label: str(name) for label, name in enumerate(classes)}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            'not a list of class names',
            where=where,
            why=str(error),
            fix="write a list such as ['road', 'car'], or a map such as {0: 'road', 7: 'car'}",
        ) from error


def _read(path: Path, where: str) -> Any:
    """Read a small text file: a list of lines, the first synonyms of a table, or parsed json / yaml."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'cannot read {path.name}{did_you_mean(path.name, NAMES)}',
            where=where,
            why=str(error),
            fix=f'give the path of a UTF-8 text file, or one of: {", ".join(NAMES)}',
        ) from error
    try:
        if path.suffix == '.txt':
            return [line.strip() for line in text.splitlines() if line.strip()]
        if path.suffix == '.csv':
            return _first_synonyms([row['Name'] for row in csv.DictReader(text.splitlines())])
        if path.suffix == '.json':
            return json.loads(text)
        if path.suffix in ('.yaml', '.yml'):
            import yaml  # needed for this format only

            return yaml.safe_load(text)
    except Exception as error:  # each parser has errors of its own
        raise ConfigError(
            f'cannot understand {path.name}: {type(error).__name__}',
            where=where,
            why=str(error),
            fix='a .csv needs a column Name; .json and .yaml hold a list or a map',
        ) from error
    raise ConfigError(
        f'{path.name}: unknown kind of file',
        where=where,
        why='names and colours are read from .txt, .csv, .json and .yaml',
        fix='rename or convert the file',
    )


def _first_synonyms(rows: list[str]) -> list[str]:
    """Return the first synonym of each row, numbered from its second use on ('screen', 'screen (2)' in ADE20K)."""
    firsts = [row.split(';')[0].strip() for row in rows]
    uses: Counter[str] = Counter()
    names = []
    for name in firsts:
        uses[name] += 1
        names.append(name if uses[name] == 1 else f'{name} ({uses[name]})')
    return names


def join_metainfo(first: Mapping[str, Any], second: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return both `metainfo`, joined field by field. Raises ConfigError unless they name the same classes in both."""
    check_classes(first, second, where=where)
    joined = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key, {}), Mapping)
        joined[key] = {**value, **joined.get(key, {})} if both else joined.get(key, value)
    return joined


def check_classes(first: Mapping[str, Any], second: Mapping[str, Any], *, where: str) -> None:
    """Raise ConfigError unless two `metainfo` name the same classes, in the same order, for the fields of both."""
    ours, theirs = first['classes'], second['classes']
    for field in sorted(set(ours) & set(theirs)):
        one, other = list(ours[field]), list(theirs[field])
        if one == other:
            continue
        row = next((row for row, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        detail = f'class {row}: {one[row]!r} against {other[row]!r}' if row is not None else 'one list is longer'
        raise ConfigError(
            f"the classes of '{field}' are not the same",
            where=where,
            why=f'{len(one)} against {len(other)} classes; {detail}',
            fix='give both the same classes in the same order',
        )
