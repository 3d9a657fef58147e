"""Cache of backbone features on disk.

The features of a data set lie in a folder of the user's cache (`$VITDENSE_CACHE`, `$XDG_CACHE_HOME/vitdense` or
`~/.cache/vitdense`). Its name is a hash of the weights, the network, the data set's recipe with its transforms, and
name, size and time of every file. Each file in it holds the features of some images and is written atomically, so an
interrupted extraction continues where it stopped; files are mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitdense.data.sampling import SeededDataset
from vitdense.errors import DataError, DiskError
from vitdense.loading.loaders import CarryErrors, TypedErrorLoader, close_loaders, collate_or_error, num_workers
from vitdense.loading.workers import pack
from vitdense.storage.atomic import cache_folder, make_folder
from vitdense.storage.weights import save_weights
from vitdense.types import Batch

FORMAT = 2  # part of the key: features written by other code are not read
PART = 64  # images in one file, at most: what an interruption may cost
logger = logging.getLogger('vitdense')


class ImageFeatures(NamedTuple):
    """Features and label of one image."""

    features: Tensor  # (C,) of the image, or (h * w, C) of its cells, row by row
    target: Tensor  # () int64, or (H, W) uint8 or int16
    grid: tuple[int, int]  # (h, w); (1, 1) for features of the whole image
    input_size: tuple[int, int]  # (H, W) of the network input that the grid covers, padding included
    size: tuple[int, int]  # (H, W) of the image in it


class FeatureCache:
    """The features of `num_images` images below `folder`, in files of at most `part` images."""

    def __init__(self, folder: Path, num_images: int, *, part: int = PART) -> None:
        self.folder, self.num_images, self.part = folder, num_images, part
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> ImageFeatures:
        number, row = divmod(index, self.part)
        held = self._held(number)
        cells, pixels = held['cell_ends'].tolist(), held['pixel_ends'].tolist()
        grid, input_size, size, shape = (tuple(side) for side in held['sizes'][row].tolist())
        features = held['features'][cells[row] : cells[row + 1]]
        target = held['target'][pixels[row] : pixels[row + 1]]
        whole = shape == (0, 0)
        return ImageFeatures(
            features[0] if whole else features, target[0] if whole else target.reshape(shape), grid, input_size, size
        )

    def table(self) -> tuple[Tensor, Tensor]:
        """Return features (N, C) and labels (N,) of whole images."""
        parts = [self._held(number) for number in range(-(-self.num_images // self.part))]
        return torch.cat([held['features'] for held in parts]), torch.cat([held['target'] for held in parts])

    def missing(self) -> list[range]:
        """Return the images of every part that is not there, or is damaged."""
        absent = [number for number in range(-(-self.num_images // self.part)) if self._read(number) is None]
        return [range(n * self.part, min((n + 1) * self.part, self.num_images)) for n in absent]

    def write(self, images: range, records: Sequence[ImageFeatures]) -> None:
        """Write the features of one part atomically. Raises DiskError."""
        features = [record.features[None] if record.features.ndim == 1 else record.features for record in records]
        sizes = [[r.grid, r.input_size, r.size, tuple(r.target.shape) or (0, 0)] for r in records]
        state = {
            'features': torch.cat(features),
            'target': torch.cat([record.target.flatten() for record in records]),
            'cell_ends': _ends(len(rows) for rows in features),
            'pixel_ends': _ends(record.target.numel() for record in records),
            'sizes': torch.tensor(sizes),  # (images, 4, 2)
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
                    'cached features are missing',
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
    extract: Callable[[Batch], list[ImageFeatures]],
    *,
    key: str,
    seed: int,
    part: int = PART,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureCache:
    """Return the features of every image of `dataset`; `extract` computes those of a batch that is not on disk.

    `section` is the data loader section (batch size and workers), `part` the number of images in one file.
    `on_progress(done, total)` is called after each batch, with numbers of images.
    """
    cache = FeatureCache(cache_folder() / 'features' / key, len(dataset), part=part)
    parts = cache.missing()
    left = sum(map(len, parts))
    if not left:
        return cache
    check_writable(cache.folder)
    if left < len(dataset):
        logger.info('%d of %d images are cached: %s', len(dataset) - left, len(dataset), cache.folder)
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
            records: list[ImageFeatures] = []
            while len(records) < len(part):
                records += extract(next(stream))
                on_progress(done + len(records), len(dataset))
            cache.write(part, records)
            done += len(part)
    finally:
        close_loaders()
    return cache


def check_writable(folder: Path) -> None:
    """Raise DiskError, before an hour of computing, unless files can be written to a cache folder."""
    try:
        make_folder(folder, writable=True)
    except DiskError as error:
        raise _unwritable(folder, error.why) from error


def _unwritable(folder: Path, why: str) -> DiskError:
    return DiskError(
        'the features cannot be written',
        where=str(folder),
        why=why,
        fix='set VITDENSE_CACHE=DIR to a folder that you may write to and that has room',
    )


def key_of(*parts: Any) -> str:
    """Return a hash of `parts` (recipes, strings, numbers) as a name."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=_text_of)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_key(state: Mapping[str, Tensor]) -> str:
    """Return a hash of the names, types and values of weights."""
    code = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        code.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        code.update(value.flatten().view(torch.uint8).numpy())
    return code.hexdigest()


def files_key(paths: Iterable[Path]) -> str:
    """Return a hash of names, sizes and times of files; of a missing one by its name alone."""
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


def _text_of(value: Any) -> str:
    """Return the dotted path of a class, and the text of any other type that JSON does not have."""
    return f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else str(value)


def _ends(lengths: Iterator[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
