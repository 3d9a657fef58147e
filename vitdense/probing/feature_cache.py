"""What a backbone sees of a data set, computed once and kept on disk.

A set of features lies in a folder of the user's cache (`$VITDENSE_CACHE`, `$XDG_CACHE_HOME/vitdense` or
`~/.cache/vitdense`), named by a key of everything that they follow from: the weights, the parts that read them, the
recipe of the data with its transforms, and name, size and time of every file. It is made of parts of some images
each. A part appears when it is whole, so that an interrupted pass goes on where it was; parts are mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitdense.data.sampling import SeededDataset
from vitdense.errors import DataError, DiskError
from vitdense.storage.atomic import cache_folder
from vitdense.storage.weights import save_weights
from vitdense.train.loaders import CarryErrors, TypedErrorLoader, close_loaders, collate_or_error, num_workers
from vitdense.train.workers import pack
from vitdense.types import Batch

FORMAT = 1  # a part of the key: features written by other code are not read
PART = 64  # images in one file, at most: what an interruption may cost
logger = logging.getLogger('vitdense')


class Record(NamedTuple):
    """What is kept of one image."""

    features: Tensor  # (C,) of the image, or (h * w, C) of its cells, row by row
    truth: Tensor  # () int64, or (H, W) uint8 or int16
    grid: tuple[int, int]  # (h, w); (1, 1) for features of the whole image
    plane: tuple[int, int]  # (H, W) of the network input that the grid covers, padding included
    size: tuple[int, int]  # (H, W) of the image in it


class FeatureCache:
    """The records of `num_images` images below `folder`, in parts of at most `part` images."""

    def __init__(self, folder: Path, num_images: int, *, part: int = PART) -> None:
        self.folder, self.num_images, self.part = folder, num_images, part
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Record:
        number, row = divmod(index, self.part)
        held = self._held(number)
        cells, pixels = held['cell_ends'].tolist(), held['pixel_ends'].tolist()
        grid, plane, size, shape = (tuple(side) for side in held['sizes'][row].tolist())
        features = held['features'][cells[row] : cells[row + 1]]
        truth = held['truth'][pixels[row] : pixels[row + 1]]
        whole = shape == (0, 0)
        return Record(
            features[0] if whole else features, truth[0] if whole else truth.reshape(shape), grid, plane, size
        )

    def table(self) -> tuple[Tensor, Tensor]:
        """Return features (N, C) and truth (N,) of whole images."""
        parts = [self._held(number) for number in range(-(-self.num_images // self.part))]
        return torch.cat([held['features'] for held in parts]), torch.cat([held['truth'] for held in parts])

    def missing(self) -> list[range]:
        """Return the images of every part that is not there, or is damaged."""
        absent = [number for number in range(-(-self.num_images // self.part)) if self._read(number) is None]
        return [range(n * self.part, min((n + 1) * self.part, self.num_images)) for n in absent]

    def write(self, images: range, records: Sequence[Record]) -> None:
        """Keep the records of one part; the file appears when it is whole. Raises DiskError."""
        whole = [record.truth.ndim == 0 for record in records]
        features = [record.features[None] if record.features.ndim == 1 else record.features for record in records]
        shapes = [(0, 0) if one else tuple(record.truth.shape) for one, record in zip(whole, records, strict=True)]
        rows = [[record.grid, record.plane, record.size, shape] for record, shape in zip(records, shapes, strict=True)]
        state = {
            'features': torch.cat(features),
            'truth': torch.cat([record.truth.flatten() for record in records]),
            'cell_ends': _ends(len(rows) for rows in features),
            'pixel_ends': _ends(record.truth.numel() for record in records),
            'sizes': torch.tensor(rows),  # (images, 4, 2)
        }
        try:
            save_weights(self._path(images.start // self.part), state)
        except DiskError as error:
            raise _unwritable(self.folder, error.why) from error

    def _path(self, number: int) -> Path:
        return self.folder / f'part-{number:05}.safetensors'

    def _held(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a part. Raises DataError when it is gone."""
        if number not in self._open:
            held = self._read(number)
            if held is None:
                raise DataError(
                    'cached features are gone',
                    where=str(self._path(number)),
                    why='the file was deleted or damaged after it was written',
                    fix='run the probe again: what is missing is computed anew',
                )
            self._open[number] = held
        return self._open[number]

    def _read(self, number: int) -> dict[str, Tensor] | None:
        """Return the tensors of a part, mapped into memory; None where it is not there or not whole."""
        count = min(self.part, self.num_images - number * self.part)
        try:
            with safe_open(self._path(number), 'pt') as file:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        return held if len(held.get('sizes', ())) == count else None


def features_of(
    dataset: Any,
    section: Mapping[str, Any],
    see: Callable[[Batch], list[Record]],
    *,
    key: str,
    seed: int,
    part: int = PART,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureCache:
    """Return the records of every image of `dataset`; `see` makes those of a batch that are not on disk yet.

    `section` says batch size and workers, `part` how many images are kept in one file. `tell(done, total)` hears of
    the progress in images.
    """
    cache = FeatureCache(cache_folder() / 'features' / key, len(dataset), part=part)
    parts = cache.missing()
    left = sum(map(len, parts))
    if not left:
        return cache
    check_writable(cache.folder)
    if left < len(dataset):
        logger.info('%d of %d images were seen before: %s', len(dataset) - left, len(dataset), cache.folder)
    size = section.get('batch_size', 1)
    batches = [list(part[begin : begin + size]) for part in parts for begin in range(0, len(part), size)]
    loader = TypedErrorLoader(
        CarryErrors(SeededDataset(dataset, seed, tolerate=False)),
        batch_sampler=batches,
        num_workers=num_workers(section),
        collate_fn=partial(pack, collate_or_error),
    )
    stream, done = iter(loader), len(dataset) - left
    try:
        for part in parts:
            records: list[Record] = []
            while len(records) < len(part):
                records += see(next(stream))
                tell(done + len(records), len(dataset))
            cache.write(part, records)
            done += len(part)
    finally:
        close_loaders()
    return cache


def check_writable(folder: Path) -> None:
    """Raise DiskError, before an hour of computing, when nothing can be kept in a folder of the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _unwritable(folder, str(error)) from error


def _unwritable(folder: Path, why: str) -> DiskError:
    return DiskError(
        'the features cannot be kept',
        where=str(folder),
        why=why,
        fix='set VITDENSE_CACHE=DIR to a folder that you may write to and that has room',
    )


def key_of(*parts: Any) -> str:
    """Return a name for what `parts` (recipes, words, numbers) say."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=_word)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_key(state: Mapping[str, Tensor]) -> str:
    """Return a code of the names, types and values of weights."""
    code = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        code.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        code.update(value.flatten().view(torch.uint8).numpy())
    return code.hexdigest()


def files_key(paths: Iterable[Path]) -> str:
    """Return a code of names, sizes and times of files. One that cannot be looked at counts by its name."""
    code = hashlib.sha256()
    for path in paths:
        code.update(f'{path} {_state(path)}\n'.encode())
    return code.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _word(value: Any) -> str:
    """Return the dotted path of a class, and the text of anything else that JSON does not know."""
    return f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else str(value)


def _ends(lengths: Iterator[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
