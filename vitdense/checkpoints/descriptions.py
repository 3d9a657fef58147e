"""Validation of `model.json` and `NAME.json`, which may come from untrusted sources.

Every field is checked before anything is built. Types are looked up only among the parts of vitdense and torchvision's
v2 transforms, and `pretrained` is switched off, so that building reads neither the network nor other files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.arguments import interval
from vitdense.errors import CheckpointError, ConfigError, did_you_mean, short
from vitdense.pretrained.hub_names import plain_name
from vitdense.registry import resolve
from vitdense.storage.atomic import parse_json, sha256_of

FORMAT = 2  # 1: parts lay in other modules
RECIPES = ('recipe', 'transforms', 'branch', 'task', 'tiler')  # keys of a description whose values are recipes
MAX_BYTES = 10_000_000  # of a description
MAX_DEPTH = 30  # of recipes inside each other
MAX_NUMBER = 1_000_000  # of a whole number in a recipe
MAX_SIDE = 8192  # pixels: numbers in recipes of transforms, tiler and test-time augmentation
ALLOWED_MODULES = (
    'vitdense.model',
    'vitdense.networks',
    'vitdense.backbones',
    'vitdense.adapters',
    'vitdense.heads',
    'vitdense.layers',
    'vitdense.tasks',
    'vitdense.ops',
    'vitdense.test_time',
    'vitdense.data.transforms.common',
    'vitdense.data.transforms.evaluation_crop',
    'torchvision.transforms.v2',
)
CONVERSION = (
    'a checkpoint or folder of rfdetr, LW-DETR or transformers becomes one by tools/import_weights.py FAMILY PATH '
    '--out DIR'
)
# arguments that make timm read other files or the network
OUTSIDE = ('checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir', 'features_only')


def read_description(path: Path, content: Sequence[str]) -> dict[str, Any]:
    """Return a json file that describes weights and holds the keys `content`; values of recipes are as written.

    Types and ranges of all fields are checked, what the recipes name is not: see `check_recipes`. Raises
    CheckpointError for any other file.
    """
    _check_folder(path.parent)
    try:
        if not path.is_file():
            raise ValueError('there is no such file' if not path.exists() else 'it is no regular file')
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f'it is larger than {MAX_BYTES} bytes')
        info = parse_json(path.read_text(encoding='utf-8'))
        if not isinstance(info, dict) or info.get('format') != FORMAT:
            version = info.get('format') if isinstance(info, dict) else None
            raise ValueError(f'its format is {version!r}, this version reads {FORMAT}')
        missing = {*content, 'weights'} - info.keys()
        if missing:
            raise ValueError(f'it lacks {", ".join(sorted(missing))}')
        for key, value in info.items():
            _check_field(key, value, whole='recipe' in content)
        info = {key: _plain(value, key) if key in RECIPES else value for key, value in info.items()}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        what = 'a model folder' if path.name == 'model.json' else 'a head'
        raise description_error(path, f'this is not {what}', str(error)) from error
    return info


def _check_folder(folder: Path) -> None:
    """Raise CheckpointError where a folder does not exist, with the nearest name that does."""
    if os.path.isdir(folder):
        return
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    above = missing[-1].absolute().parent if missing else folder.absolute()
    known = os.listdir(above) if os.path.isdir(above) else []
    if os.path.isfile(folder):
        raise CheckpointError(
            f"'{folder.name}' is a file, not a model folder",
            where=str(folder.absolute()),
            why='a model is a folder with model.json and its weights',
            fix=f'give the folder model/ of a training run; {CONVERSION}',
        )
    raise CheckpointError(
        f"there is no folder '{folder}'{did_you_mean(missing[-1].name, known) if missing else ''}",
        where=str(folder.absolute()),
        why='a model is a folder with model.json and its weights',
        fix='check the path; a training run leaves its model in work_dirs/NAME/model',
    )


def described_weights(path: Path, info: Mapping[str, Any]) -> Path:
    """Return the weights file of the description at `path`. Raises CheckpointError on a wrong SHA-256."""
    weights = path.parent / info['weights']['file']
    if weights.parent != path.parent or not os.path.isfile(weights):  # not Path's, which raises for long names
        raise description_error(weights, 'the weights are missing', f'the file that {path.name} names does not exist')
    if sha256_of(weights) != info['weights']['sha256']:
        raise description_error(weights, 'checksum mismatch', f'the weights are not those that {path.name} describes')
    return weights


def description_error(path: Path, message: str, why: str) -> CheckpointError:
    """Return the error for a description or weights that cannot be used."""
    return CheckpointError(
        message,
        where=str(path),
        why=why,
        fix=f'give the folder model/ of a training run, whole; a checkpoint needs its config beside it;\n{CONVERSION}'
        if 'model.' in path.name
        else 'give both files of a head, NAME.json and NAME.safetensors, as they were written',
    )


def check_metadata(metadata: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless `metainfo` and `omitted_weights` of a checkpoint are as a run writes them."""
    metainfo, omitted = metadata.get('metainfo'), metadata.get('omitted_weights')
    good = metainfo is None or (
        isinstance(metainfo, dict) and (not metainfo or isinstance(metainfo.get('classes'), dict))
    )
    for key in _OF_CLASSES if good and metainfo else ():
        try:
            _check_field(key, {field: _listed(value) for field, value in (metainfo.get(key) or {}).items()}, whole=True)
        except (ValueError, AttributeError):
            good = False
    named = omitted is None or (isinstance(omitted, dict) and all(isinstance(name, str) for name in omitted))
    pairs = named and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in (omitted or {}).values())
    if not (good and pairs):
        raise CheckpointError(
            'the metadata of the checkpoint is wrong',
            where=str(path),
            why=f'its {"omitted" if good else "metainfo"} is {short(omitted if good else metainfo)}',
            fix='give a checkpoint as a run of vitdense wrote it, or its weights alone as a file of names and tensors',
        )


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def without_pretrained(recipe: Any) -> Any:
    """Return a model recipe whose parts load no weights of their own: a checkpoint brings them all."""
    if isinstance(recipe, Mapping):
        return {key: False if key == 'pretrained' else without_pretrained(value) for key, value in recipe.items()}
    if isinstance(recipe, list | tuple):
        return type(recipe)(without_pretrained(item) for item in recipe)
    return recipe


def check_recipes(recipes: Sequence[Any], path: Path) -> None:
    """Raise CheckpointError unless all parts in `recipes`, read from the file `path`, are parts of vitdense."""
    for key, part in _recipes(recipes, path.name):
        _check_part(key, part, path)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_colors(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(color, list) and len(color) == 3 and all(_is_whole(part) and part <= 255 for part in color)
        for color in value
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or _is_whole(item) for item in value)


def _is_rgb(value: Any) -> bool:
    numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return numbers and len(value) == 3 and all(math.isfinite(item) for item in value)


def _is_points(value: Any) -> bool:
    """Whether a value is {head: points}, as `metrics.operating_points.describe_points` gives them."""

    def share(item: Any) -> bool:
        return isinstance(item, int | float) and 0 <= item <= 1

    def good(points: Any) -> bool:
        if not isinstance(points, dict) or not isinstance(points.get('temperature', 1.0), int | float):
            return False
        lists = [points.get(name, []) for name in ('threshold', 'precision', 'recall', 'ece')]
        flat = all(isinstance(each, list) and all(item is None or share(item) for item in each) for each in lists)
        return flat and 0 < points.get('temperature', 1.0) < 1000

    return isinstance(value, dict) and all(good(points) for points in value.values())


def _is_weights(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ('file', 'sha256')):
        return False
    return bool(re.fullmatch('[0-9a-f]{64}', value['sha256'])) and '\0' not in value['file']


def _is_range(value: Any) -> bool:
    try:
        return interval(value, 'value_range') is not None
    except ConfigError:
        return False


_OF_CLASSES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'classes': (_is_words, 'a list of names'),
    'palette': (_is_colors, 'a list of colours [red, green, blue] from 0 to 255'),
    'category_ids': (_is_ids, 'a list of whole numbers'),
}
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'format': (_is_whole, 'a whole number'),
    'vitdense': (lambda value: isinstance(value, str), 'a version'),
    'licence': (lambda value: isinstance(value, str), 'a text'),
    'name': (lambda value: isinstance(value, str), 'a word'),
    'field': (lambda value: isinstance(value, str), 'a word'),
    'step': (_is_whole, 'a whole number'),
    'mean': (_is_rgb, 'three numbers'),
    'std': (lambda value: _is_rgb(value) and min(value) > 0, 'three numbers above 0'),
    'value_range': (_is_range, 'two numbers, the first one below the other'),
    'operating_points': (_is_points, 'score thresholds from 0 to 1 by head, and a temperature'),
    'weights': (_is_weights, 'an object with the name of the file and its sha256 as 64 hexadecimal digits'),
    'recipe': (lambda value: isinstance(value, dict), 'an object'),
    'branch': (lambda value: isinstance(value, dict), 'an object'),
    'task': (lambda value: isinstance(value, dict), 'an object'),
    'backbone': (lambda value: isinstance(value, dict), 'an object'),
    'tiler': (lambda value: value is None or isinstance(value, dict), 'an object or null'),
    'transforms': (
        lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
        'a list of objects',
    ),
}


def _check_field(key: str, value: Any, *, whole: bool) -> None:
    """Raise ValueError unless a field holds what it should; in a model (`whole`) classes are given by field."""
    if key in _OF_CLASSES:
        check, words = _OF_CLASSES[key]
        if not whole:
            good = value is None or check(value)
        else:
            good = isinstance(value, dict) and all(check(item) for item in value.values())
            words = f'an object of fields, each {words}'
    else:
        check, words = _FIELDS.get(key, (lambda _: True, ''))
        good = check(value)
    if not good:
        raise ValueError(f'{key} is {short(value)}, not {words}')


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """Return JSON data as recipes are written: lists of plain values are tuples, and nothing is `pretrained`.

    Raises ValueError for recipes too deep in each other and for numbers that no recipe has.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f'{key} holds more than {MAX_DEPTH} levels')
    if isinstance(value, dict):
        plain = {name: _plain(item, f'{key}.{name}', depth + 1) for name, item in value.items()}
        return without_pretrained(plain) if depth == 0 else plain
    if isinstance(value, list):
        items = [_plain(item, f'{key}.{row}', depth + 1) for row, item in enumerate(value)]
        items = without_pretrained(items) if depth == 0 else items
        return items if any(isinstance(item, dict) for item in items) else tuple(items)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{key} is {value}')
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f'{key} is {short(value)}, more than {MAX_NUMBER}')
    if isinstance(value, int) and abs(value) > MAX_SIDE and re.match(r'transforms|tiler|recipe\.(tiler|tta)\.', key):
        raise ValueError(f'{key} is {value}: images have at most {MAX_SIDE} pixels on a side there')
    return value


def _recipes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield key, value
        for name, item in value.items():
            yield from _recipes(item, f'{key}.{name}')
    elif isinstance(value, list | tuple):
        for row, item in enumerate(value):
            yield from _recipes(item, f'{key}.{row}')


def _check_part(key: str, part: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless a recipe names a class of ours and stays inside the folder."""
    outside = [name for name in part if name in OUTSIDE]
    if outside or ':' in plain_name(str(part.get('name', ''))):
        raise description_error(path, f'{key} points outside', f'it gives {outside or part["name"]}')
    for name in ('tiler', 'tta', 'augment'):
        if not isinstance(part.get(name), dict | None):
            raise description_error(path, f'{key}.{name} is {short(part[name])}', 'it is a recipe with a type')
    if 'type' not in part:
        return
    kind = part['type']
    allowed = isinstance(kind, str) and any(kind.startswith(f'{module}.') for module in ALLOWED_MODULES)
    try:
        cls = resolve(kind) if allowed else None
    except ConfigError as error:
        raise description_error(path, error.message, 'it may come from a newer version of vitdense') from error
    # a module of ours also holds what it imports: only classes that are defined in ours count
    if not isinstance(cls, type) or not any(
        f'{cls.__module__}.'.startswith(f'{module}.') for module in ALLOWED_MODULES
    ):
        raise description_error(path, f'{key}.type is {kind!r}', 'a model is made of parts of vitdense only')
