"""Mapping of the numbers or colours in label files to class indices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vitdense.data.class_names import (
    HERE,
    NAMES,
    PALETTES,
    Color,
    as_color,
    distinct_colors,
    read_classes,
    read_palette,
)
from vitdense.errors import ConfigError, DataError
from vitdense.types import IGNORE

_UNKNOWN = 254  # marks numbers that are neither a class nor ignored; so there are at most 254 classes, 0..253


class LabelTable:
    """Table from the numbers (or colours) in label files to class indices 0..K-1 or IGNORE.

    The arguments are those of `SegmentationDataset`. `metainfo` holds the classes, the palette and one sentence on what
    is ignored; `colors` is the colour table for `read_label_map`, or None.
    """

    def __init__(
        self,
        classes: Sequence[str] | Mapping[int, str] | str | Path | None,
        *,
        palette: Sequence[Sequence[int]] | str | Path | None = None,
        label_map: Mapping[Any, int | None] | None = None,
        colored: bool = False,
        reduce_zero_label: bool = False,
        ignore: int | Sequence[int | Sequence[int]] | None = None,
        root: Path = HERE,
        needed: bool = True,
    ) -> None:
        if classes is None and not needed:
            self.colors, self.metainfo = None, {'classes': {}, 'palette': {}}
            return
        ignored = _ignored(ignore, label_map or {})
        if classes is None:
            raise _config('classes', 'classes are not given', 'labels are numbers; classes gives their names')
        names = read_classes(classes, root=root)
        _check_count(names)
        self._own_palette = palette is not None or list(names.values()) in [list(NAMES[key]) for key in PALETTES]
        direct = label_map is None and not colored and not reduce_zero_label
        dropped = {label for label in names if direct and label in ignored}  # an ignored number is no class
        colors = dict(zip(names, read_palette(palette, list(names.values()), root=root), strict=True))
        names = {label: name for label, name in names.items() if label not in dropped}
        colors = [colors[label] for label in names]
        if not names:
            raise _config('classes', 'every class is ignored', 'no class is left to train on')
        if colored:
            lookup = _color_lookup(label_map, colors, ignored)
            self.colors: dict[Color, int] | None = lookup
            self.lookup = {label: label for label in lookup.values()}
        else:
            self.colors = None
            self.lookup = _number_lookup(label_map, list(names), reduce_zero_label, ignored)
        _check_range(self.lookup, len(names))
        self._class_colors = [tuple(color) for color in colors]
        self._table = np.array([self.lookup.get(label, _UNKNOWN) for label in range(256)], np.uint8)
        self.metainfo = {
            'classes': {'semantic': list(names.values())},
            'palette': {'semantic': colors},
            'ignore': {'semantic': self._policy(colored)},
        }

    def set_classes(self, names: Sequence[str]) -> None:
        """Number the classes as in `names`, by name; where a class is not among these, everything stays as it is."""
        own, colors = self.metainfo['classes']['semantic'], self.metainfo['palette']['semantic']
        if list(names) == own or not set(own) <= set(names):
            return
        _check_count(names)
        number = {label: list(names).index(name) for label, name in enumerate(own)} | {IGNORE: IGNORE}
        self.lookup = {label: number[index] for label, index in self.lookup.items()}
        self._table = np.array([self.lookup.get(label, _UNKNOWN) for label in range(256)], np.uint8)
        by_name = dict(zip(own, colors, strict=True))
        colors = [by_name.get(name, color) for name, color in zip(names, distinct_colors(len(names)), strict=True)]
        self._class_colors = [tuple(color) for color in colors]
        self.metainfo = {
            **self.metainfo,
            'classes': {'semantic': list(names)},
            'palette': {'semantic': colors},
            'labelled': {'semantic': self.metainfo.get('labelled', {}).get('semantic', own)},
        }

    def apply(self, raw: np.ndarray, path: Path) -> np.ndarray:
        """Return (H, W) uint8 class indices of the numbers of one file. Raises DataError for unknown numbers."""
        if raw.dtype == np.uint8:
            indices = cv2.LUT(raw, self._table)
            unknown = indices == _UNKNOWN
            if unknown.any():
                raise self._out_of_range(np.unique(raw[unknown]).tolist(), path)
            return indices
        numbers, inverse = np.unique(raw, return_inverse=True)
        unknown = [number for number in numbers.tolist() if number not in self.lookup]
        if unknown:
            raise self._out_of_range(unknown, path)
        table = np.array([self.lookup[number] for number in numbers.tolist()], np.uint8)
        return table[inverse.reshape(raw.shape)]

    def check_palette(self, raw: np.ndarray, path: Path, colors: Sequence[Color] | None) -> None:
        """Raise DataError where the palette `colors` of a file gives its numbers the colours of other classes.

        Image programs may renumber palette images: then the colours are right and the numbers are not. Checked with a
        `palette` argument, or that of a well-known data set.
        """
        if colors is None or self.colors is not None or not self._own_palette:
            return
        used = [number for number in np.unique(raw).tolist() if self.lookup.get(number, IGNORE) != IGNORE]
        pairs = [(number, self.lookup[number], colors[number]) for number in used if number < len(colors)]
        if not all(color in self._class_colors for _, _, color in pairs):
            return
        odd = [pair for pair in pairs if pair[2] != self._class_colors[pair[1]]]
        if odd:
            number, index, color = odd[0]
            names, other = self.metainfo['classes']['semantic'], self._class_colors.index(color)
            raise DataError(
                f'{path.name}: number {number} is class {names[index]!r} but has the colour of {names[other]!r}',
                where=str(path),
                why=f'{len(odd)} numbers of the file have colours of other classes in its palette: a program may have '
                'numbered the colours anew',
                fix='read the colours, colored_labels=True; or leave palette= out if the numbers are right',
            )

    def _out_of_range(self, numbers: list[int], path: Path) -> DataError:
        shown = ', '.join(map(str, numbers[:8])) + (', ...' if len(numbers) > 8 else '')
        return DataError(
            f'{path.name}: values {{{shown}}} not in {self._expected()}',
            where=str(path),
            why='a label that is no class would train the wrong thing, or crash the loss on a GPU',
            fix='correct the file, or say what these numbers mean: ignore=[...], label_map={number: class index}, '
            'reduce_zero_label=True when 0 means unlabelled',
        )

    def _expected(self) -> str:
        classes = sorted(number for number, index in self.lookup.items() if index != IGNORE)
        ignored = sorted(number for number, index in self.lookup.items() if index == IGNORE)
        run = classes == list(range(classes[0], classes[-1] + 1))
        text = f'{classes[0]}..{classes[-1]}' if run else ', '.join(map(str, classes))
        return text + (f' or ignore {", ".join(map(str, ignored))}' if ignored else '')

    def _policy(self, colored: bool) -> str:
        if colored:
            ignored = [str(color) for color, index in self.colors.items() if index == IGNORE]
            what = 'pixels of colour'
        else:
            ignored = [str(number) for number, index in sorted(self.lookup.items()) if index == IGNORE]
            what = 'pixels labelled'
        if not ignored:
            return 'No pixel is ignored.'
        listed = ', '.join(ignored[:8]) + (', ...' if len(ignored) > 8 else '')
        return f'{what.capitalize()} {listed} in the files are ignored: they enter neither loss nor metric.'


def _ignored(ignore: int | Sequence[Any] | None, label_map: Mapping[Any, int | None]) -> list[Any]:
    """Return the ignored numbers or colours: by default 255, unless it is a class in `label_map`."""
    if ignore is None:
        is_class = label_map.get(IGNORE, label_map.get(str(IGNORE))) not in (None, IGNORE)
        return [] if is_class else [IGNORE]
    return [ignore] if isinstance(ignore, int) else list(ignore)


def _number_lookup(
    label_map: Mapping[Any, int | None] | None, labels: list[int], reduce_zero_label: bool, ignored: Sequence[Any]
) -> dict[int, int]:
    if not all(isinstance(value, int) for value in ignored):
        raise _config('ignore', f'ignore = {ignored!r}', 'colours are ignored only with colored_labels=True')
    if label_map is not None and reduce_zero_label:
        raise _config('label_map', 'label_map and reduce_zero_label', 'each says what the numbers mean; give one')
    if label_map is not None:
        try:
            lookup = {int(number): _index(index) for number, index in label_map.items()}
        except (TypeError, ValueError) as error:
            raise _config(
                'label_map', f'label_map = {label_map!r}', f'it is {{number: class index}} ({error})'
            ) from None
    elif reduce_zero_label:
        lookup = {0: IGNORE, **{index + 1: index for index in range(len(labels))}}
    else:
        lookup = {label: index for index, label in enumerate(labels)}
    for value in ignored:
        if lookup.get(value, IGNORE) != IGNORE:
            raise _config(
                'ignore', f'{value} is ignored, and is class {lookup[value]}', 'a number has one meaning; see label_map'
            )
        lookup[value] = IGNORE
    return lookup


def _color_lookup(
    label_map: Mapping[Any, int | None] | None, palette: Sequence[Sequence[int]], ignored: Sequence[Any]
) -> dict[Color, int]:
    table = label_map or {tuple(color): index for index, color in enumerate(palette)}
    lookup = {as_color(color, 'label_map'): _index(index) for color, index in table.items()}
    if label_map is None and len(lookup) < len(palette):
        raise _config('palette', 'two classes have one colour', 'a label image names classes by colour only')
    return lookup | {as_color(color, 'ignore'): IGNORE for color in ignored if not isinstance(color, int)}


def _check_count(names: Collection[Any]) -> None:
    if len(names) > _UNKNOWN:
        raise _config('classes', f'{len(names)} classes', 'labels are 8-bit numbers: at most 254 classes')


def _index(index: int | None) -> int:
    return IGNORE if index is None else int(index)


def _check_range(lookup: Mapping[int, int], count: int) -> None:
    wrong = {number: index for number, index in lookup.items() if index != IGNORE and not 0 <= index < count}
    if wrong:
        raise _config('label_map', f'label_map leads out of range: {wrong}', f'class indices are 0..{count - 1} or 255')
    if all(index == IGNORE for index in lookup.values()):
        raise _config('label_map', 'label_map ignores everything', 'no number in the files would be a class')


def _config(where: str, message: str, why: str) -> ConfigError:
    fix = f'correct {where} of SegmentationDataset; docs/your_own_data.md shows every layout'
    return ConfigError(message, where=where, why=why, fix=fix)
