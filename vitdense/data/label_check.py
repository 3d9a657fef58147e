"""Statistics of label maps: pixels of each class, ignored values, and checks for absent classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from vitdense.errors import DataError
from vitdense.types import IGNORE

SHOWN = 8  # names or numbers in a message


class LabelStatistics:
    """Pixels of each class, and files with each ignored value, over the label maps added so far.

    `names` are the classes. With `colored` the files hold colours, and their values are not reported.
    """

    def __init__(self, names: list[str], *, colored: bool = False) -> None:
        self.names, self.colored = names, colored
        self.files = 0
        self.pixels = np.zeros(256, np.int64)  # of each class; the last one is IGNORE
        self.numbers: dict[int, int] = {}  # class index -> a number in the files that stands for it
        self.ignored: Counter[int] = Counter()  # number in the files -> files that hold it

    def add(self, raw: np.ndarray, labels: np.ndarray) -> None:
        """Count one label map: its numbers `raw` (H, W) and the class indices `labels` (H, W) uint8 made of them."""
        counts = np.bincount(labels.ravel(), minlength=256)
        ignored = np.unique(raw[labels == IGNORE]).tolist() if counts[IGNORE] else []
        classes = {int(index): int(raw[labels == index].flat[0]) for index in np.flatnonzero(counts[:IGNORE])}
        self.count(counts, ignored, classes)

    def count(self, counts: np.ndarray, ignored: Iterable[int], numbers: Mapping[int, int]) -> None:
        """Count one label map: pixels (256,) by class index, the ignored numbers, and `{class index: number}`."""
        self.files += 1
        self.pixels += counts
        self.ignored.update(ignored)
        self.numbers = {**numbers, **self.numbers}

    @property
    def present(self) -> list[int]:
        """The classes that have pixels."""
        return np.flatnonzero(self.pixels[: len(self.names)]).tolist()

    @property
    def absent(self) -> list[int]:
        """The classes that have none."""
        return np.flatnonzero(self.pixels[: len(self.names)] == 0).tolist()

    def log(self, logger: logging.Logger, name: str, total: int) -> None:
        """Log the ignored share and the absent classes of the label maps added, of `total`."""
        if not self.files:
            return
        share = self.pixels[IGNORE] / max(1, self.pixels.sum())
        if self.ignored:
            text = '%s: %s of the pixels of %d label maps (of %d) are ignored%s'
            logger.info(text, name, f'{share:.1%}', self.files, total, '' if self.colored else self._ignored_text())
        if not self.present:
            logger.warning('%s: no pixel of the %d label maps checked is labelled: no score', name, self.files)
        elif self.absent:
            logger.warning('%s: %s', name, self._absent_text())

    def check_classes_present(self, where: str) -> None:
        """Raise DataError where fewer than two classes have pixels."""
        if len(self.present) > 1:
            return
        if len(self.names) == 1:
            message = f'there is one class only, {self.names[0]!r}, so nothing can be learned'
            fix = (
                f"name the background as well, such as classes=['background', {self.names[0]!r}], and do not ignore it"
            )
        elif not self.present:
            message, fix = f'no pixel of the {self.files} label maps is labelled', self._fix()
        else:
            only = self.present[0]
            message = f'class {only} {self.names[only]!r} is the only one in the {self.files} label maps'
            fix = self._fix()
        raise DataError(
            message,
            where=where,
            why='the loss becomes 0 whatever the model does, and a score would mean nothing' + self._ignored_text(),
            fix=fix,
        )

    def _absent_text(self) -> str:
        named = [f'{index} {self.names[index]!r}' for index in self.absent[:SHOWN]]
        more = ', ...' if len(self.absent) > SHOWN else ''
        what = f'class {named[0]} is' if len(named) == 1 else f'classes {", ".join(named)}{more} are'
        text = f'{what} in none of the {self.files} label maps checked'
        everywhere = sorted(n for n, files in self.ignored.items() if files == self.files and not self.colored)
        if everywhere:
            meant = self._label_map()
            text += f', while {", ".join(map(str, everywhere[:SHOWN]))} (ignored) is in all of them'
            text += f'; if that is the class: label_map={meant}' if meant else ''
        return text

    def _ignored_text(self) -> str:
        if self.colored or not self.ignored:
            return ''
        words = [
            f'{number} (in {"all" if files == self.files else f"{files} of {self.files}"} files)'
            for number, files in sorted(self.ignored.items())[:SHOWN]
        ]
        return f'; ignored numbers: {", ".join(words)}'

    def _label_map(self) -> dict[int, int]:
        """Return the `label_map` that gives the missing classes the ignored numbers; empty where it is not plain."""
        spare = sorted(self.ignored)
        if self.colored or len(spare) != len(self.absent):
            return {}
        known = {self.numbers[index]: index for index in self.present}
        return dict(sorted((known | dict(zip(spare, self.absent, strict=True))).items()))

    def _fix(self) -> str:
        meant = self._label_map()
        other = (
            f'if the ignored numbers are classes, write label_map={meant}' if meant else 'check ignore= and classes='
        )
        return f'look at the label maps with tools/check_data.py; {other}'
