"""Windows of large TIFF files (GeoTIFF, BigTIFF): only the tiles or strips that a window touches are decoded.

Every tile is written as a small TIFF of its own and decoded by `decode_image`: the same compressions, bit depths and
rules as for whole files.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import TiffImagePlugin
from torch import Tensor

from vitdense.data.files.images import decode_image
from vitdense.data.files.opening import MAX_PIXELS, UnreadableImage, file_size, reason, unreadable

LARGEST_PART = 2**27  # bytes of a decoded tile or strip
CACHE = 2**27  # bytes of decoded parts that are kept: the windows of a row touch the same ones
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 273, 274, 277
ROWS, STRIP_BYTES, PLANAR, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 278, 279, 284, 322, 323, 324, 325
COPIED = (BITS, COMPRESSION, PHOTOMETRIC, 266, SAMPLES, PLANAR, 317, 320, 338, 339, 347, 530)  # the rest is no pixels
OLD_JPEG = 6  # its tables lie elsewhere in the file


class _Part(NamedTuple):
    """A tile or a strip: where its pixels lie, and the size (H, W) that is decoded."""

    ranges: list[tuple[int, int]]  # (offset, bytes) of its bands; one unless the file is planar
    size: tuple[int, int]


class TiledTiff:
    """A TIFF file of which windows are read, (3, H, W) uint8 RGB as `read_image` gives it.

    `of` returns None for files that have to be read whole: other formats, and TIFF that is turned, or in one part that
    is compressed and large. `value_range` is that of `read_image`.

    Raises UnreadableImage for a damaged file, and for more than `max_pixels`.
    """

    def __init__(self, path: Path, tags: Any, *, value_range: tuple[float, float] | None) -> None:
        self.path = path
        self.size = int(tags[HEIGHT]), int(tags[WIDTH])
        self.value_range = value_range
        self._tags = {tag: _numbers(tags[tag]) for tag in COPIED if tag in tags}
        self._little = tags.prefix[:2] == b'II'
        self._parts = _parts(tags, self.size, self._row_bytes())
        self._columns = 1 if TILES not in tags else -(-self.size[1] // int(tags[TILE_WIDTH]))
        self._cell = self._parts[0].size
        # one block of memory: small ones that live long keep the allocator from reusing what lies between them
        kept = min(len(self._parts), max(1, CACHE // (3 * self._cell[0] * self._cell[1])))
        self._pixels = torch.empty(kept, 3, *self._cell, dtype=torch.uint8)
        self._slots: OrderedDict[int, int] = OrderedDict()  # of the parts that are kept, the latest used last

    @classmethod
    def of(
        cls, path: str | Path, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
    ) -> TiledTiff | None:
        tags = _directory(Path(path))
        if tags is None or tags.get(ORIENTATION, 1) != 1 or tags.get(COMPRESSION, 1) == OLD_JPEG:
            return None
        try:
            tiff = cls(Path(path), tags, value_range=value_range)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error
        if tiff._cell[0] * tiff._cell[1] * 3 > LARGEST_PART:
            return None
        if tiff.size[0] * tiff.size[1] > max_pixels:
            why = f'its header declares {tiff.size[1]} x {tiff.size[0]} pixels'
            raise unreadable(path, f'more than {max_pixels / 1e6:g} Mpx', why, 'raise the limit (max_pixels)')
        return tiff

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, *self.size

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return the window (3, height, width), which must lie inside the image."""
        window = torch.empty(3, height, width, dtype=torch.uint8)
        rows, columns = self._cell
        for row in range(top // rows, -(-(top + height) // rows)):
            for column in range(left // columns, -(-(left + width) // columns)):
                part = self._decoded(row * self._columns + column)
                y, x = row * rows, column * columns
                first = max(top, y), max(left, x)
                last = min(top + height, y + part.shape[1]), min(left + width, x + part.shape[2])
                window[:, first[0] - top : last[0] - top, first[1] - left : last[1] - left] = part[
                    :, first[0] - y : last[0] - y, first[1] - x : last[1] - x
                ]
        return window

    def preview(self, step: int) -> Tensor:
        """Return every `step`-th row and column."""
        height, width = self.size
        rows = max(step, self._cell[0] // step * step)
        preview = torch.empty(3, -(-height // step), -(-width // step), dtype=torch.uint8)  # one block, as above
        for top in range(0, height, rows):
            strip = self.read(top, 0, min(rows, height - top), width)[:, ::step, ::step]
            preview[:, top // step : top // step + strip.shape[1]] = strip
        return preview

    def _row_bytes(self) -> int | None:
        """Return the bytes of a row, where rows follow one another without compression; else None."""
        tags, bits = self._tags, self._tags.get(BITS, (1,))
        plain = tags.get(COMPRESSION, (1,)) == (1,) and tags.get(PLANAR, (1,)) == (1,)
        return -(-self.size[1] * sum(bits) // 8) if plain else None

    def _decoded(self, number: int) -> Tensor:
        """Return the pixels (3, h, w) of a part, until another one takes their place."""
        part = self._parts[number]
        if number not in self._slots:
            pixels = self._decode(part)
            full = len(self._slots) == len(self._pixels)
            slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._pixels[slot, :, : part.size[0]] = pixels
            self._slots[number] = slot
        self._slots.move_to_end(number)
        return self._pixels[self._slots[number], :, : part.size[0]]

    def _decode(self, part: _Part) -> Tensor | int:
        if any(size == 0 for _, size in part.ranges):  # GDAL leaves out what is black
            return 0
        content = _small_tiff(self._tags, part.size, self._read(part.ranges), '<' if self._little else '>')
        return decode_image(content, str(self.path), value_range=self.value_range)

    def _read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        data = []
        with self.path.open('rb') as file:
            for offset, size in ranges:
                file.seek(offset)
                data.append(file.read(size))
        return data


def _directory(path: Path) -> Any:
    """Return the tags of the first image of a TIFF file; None for other files."""
    file_size(path, most=None)
    with path.open('rb') as file:
        head = file.read(16)
        if head[:4] not in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
            return None
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head if b'+' in head[:4] else head[:8])
            file.seek(tags.next)
            tags.load(file)
            int(tags[HEIGHT]), int(tags[WIDTH])
            return tags if STRIPS in tags or TILES in tags else None
        except Exception as error:  # whatever a damaged directory makes of Pillow
            raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> UnreadableImage:
    return unreadable(path, 'a damaged TIFF file', reason(error), 'copy or download the file again')


def _parts(tags: Any, size: tuple[int, int], row_bytes: int | None) -> list[_Part]:
    """Return the tiles or strips of a file, row by row."""
    tiled = TILES in tags
    if tiled:
        cell = int(tags[TILE_HEIGHT]), int(tags[TILE_WIDTH])
    else:
        cell = min(int(tags.get(ROWS, size[0])), size[0]), size[1]
    offsets, counts = (_numbers(tags[tag]) for tag in ((TILES, TILE_BYTES) if tiled else (STRIPS, STRIP_BYTES)))
    across, down = -(-size[1] // cell[1]), -(-size[0] // cell[0])
    bands = int(tags.get(SAMPLES, 1)) if tags.get(PLANAR, 1) == 2 else 1
    if len(offsets) != across * down * bands or len(counts) != len(offsets):
        raise ValueError(f'{len(offsets)} parts for {across} x {down}')
    ranges = list(zip(offsets, counts, strict=True))
    if not tiled and row_bytes is not None and row_bytes * cell[0] > LARGEST_PART // 8:
        return _split_strips(ranges, size, cell[0], row_bytes)
    number = across * down
    heights = [cell[0]] * number if tiled else [min(cell[0], size[0] - row * cell[0]) for row in range(number)]
    return [_Part(ranges[row::number], (height, cell[1])) for row, height in enumerate(heights)]


def _split_strips(ranges: Sequence[tuple[int, int]], size: tuple[int, int], rows: int, row_bytes: int) -> list[_Part]:
    """Return strips of few rows of strips without compression, which may hold the whole image."""
    few = max(rows_few for rows_few in range(1, 65) if rows % rows_few == 0)
    parts = []
    for number, top in enumerate(range(0, size[0], rows)):
        for row in range(0, min(rows, size[0] - top), few):
            height = min(few, rows - row, size[0] - top - row)
            parts.append(_Part([(ranges[number][0] + row * row_bytes, height * row_bytes)], (height, size[1])))
    return parts


def _small_tiff(tags: dict[int, tuple[Any, ...]], size: tuple[int, int], bands: Sequence[bytes], order: str) -> bytes:
    """Return a TIFF file of one strip (one of each band) with these pixels."""
    offsets = [8]
    for band in bands[:-1]:
        offsets.append(offsets[-1] + len(band))
    own = {WIDTH: (size[1],), HEIGHT: (size[0],), ROWS: (size[0],), STRIPS: tuple(offsets)}
    entries = sorted((tags | own | {STRIP_BYTES: tuple(map(len, bands))}).items())
    start = 8 + sum(map(len, bands))
    start += start % 2
    directory, values = struct.pack(f'{order}H', len(entries)), b''
    after = start + 2 + 12 * len(entries) + 4
    for tag, numbers in entries:
        raw = isinstance(numbers[0], bytes)
        long = not raw and (tag in (*own, STRIP_BYTES) or max(numbers) > 65535)
        data = numbers[0] if raw else struct.pack(f'{order}{len(numbers)}{"I" if long else "H"}', *numbers)
        directory += struct.pack(f'{order}HHI', tag, 7 if raw else 4 if long else 3, len(data) if raw else len(numbers))
        directory += data.ljust(4, b'\0') if len(data) <= 4 else struct.pack(f'{order}I', after + len(values))
        values += (data + b'\0' * (len(data) % 2)) if len(data) > 4 else b''
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', start)
    body = b''.join(bands)
    return head + body + b'\0' * (start - 8 - len(body)) + directory + bytes(4) + values


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
