"""Image files to RGB tensors, label files to label maps: strict about broken files, tolerant about formats.

Pillow decodes. A plain baseline JPEG goes to OpenCV instead, which is faster and gives the same pixels (both are
libjpeg-turbo), but only after Pillow has read its header and nothing about it is in doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from vitdense.arguments import interval
from vitdense.data.files.bit_depth import DEEP_COLORS, Scale, bits_of, scale_of, stored_numbers, stretch
from vitdense.data.files.opening import (
    MAX_PIXELS,
    UnreadableImage,
    image_source,
    loaded,
    opened,
    orientation,
    reason,
    unreadable,
    upright_array,
)
from vitdense.errors import DataError
from vitdense.types import Meta, Sample, Target

LABEL_SUFFIXES = ('.png', '.apng', '.bmp', '.tif', '.tiff', '.gif', '.pgm')

_JPEG_END = b'\xff\xd9'
_START_OF_SCAN = 0xDA


class DecodedImage(NamedTuple):
    """An image, and the largest number that a file of 16 bits holds."""

    image: Tensor  # (3, H, W) uint8 RGB
    brightest: int | None  # None: the file has 8 bits, or its numbers were given a range


def read_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Return the image at `path`, upright, as (3, H, W) uint8 RGB. The file is only read, never written.

    Gray, palette, 1-bit, CMYK and animated images (first frame) become RGB; an alpha channel is dropped, not
    composited. 16-bit gray is divided by 257. `value_range = (low, high)` is for images whose numbers have no
    fixed meaning (float, 32-bit, 12 bits stored in 16): low becomes 0, high 255, values beyond are clipped.
    The memory is channels last (a view of (H, W, 3)), as decoders and OpenCV lay images out.

    Raises UnreadableImage (a DataError) naming the file when it is missing, empty, no image, no regular file,
    truncated, larger than `max_pixels` (checked in the header, before anything is decoded), or needs a `value_range`;
    ConfigError for a `value_range` that is none.
    """
    return read_levels(path, max_pixels=max_pixels, value_range=value_range).image


def read_sample(path: Path, image_id: int | str, dataset: str, **options: Any) -> Sample:
    """Return the image at `path` as a sample without target; `options` are those of `read_image`."""
    img = tv_tensors.Image(read_image(path, **options))
    size = (img.shape[-2], img.shape[-1])
    return Sample(img, Target(), Meta(image_id, str(path), dataset, size, size))


def read_levels(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
) -> DecodedImage:
    """`read_image`, with the largest value of a 16-bit file."""
    return _levels(image_source(path), path, max_pixels, interval(value_range, 'value_range'))


def decode_image(
    content: bytes, name: str, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Return `read_image` of the content of an image file; errors call it `name`."""
    if not content:
        raise unreadable(name, 'the file is empty', 'it has 0 bytes', 'send the content of an image file')
    return _levels(content, name, max_pixels, interval(value_range, 'value_range')).image


def _levels(
    source: bytes | Path, path: str | Path, max_pixels: int, value_range: tuple[float, float] | None
) -> DecodedImage:
    with opened(path, max_pixels, source=source) as image:
        array, brightest = None, None
        if value_range is None:
            array = _decode_plain_jpeg(source, image)
        elif bits_of(image) == 16 and image.mode in DEEP_COLORS:
            array = stretch(_deep_color(source, image, path), value_range)
        if array is None:
            array, brightest = _rgb_array(image, path, value_range)
    return DecodedImage(torch.from_numpy(array).permute(2, 0, 1), brightest)  # (H, W, 3) -> (3, H, W)


def from_pil(image: Image.Image, *, value_range: tuple[float, float] | None = None) -> Tensor:
    """Return an open Pillow image as (3, H, W) uint8 RGB, by the rules of `read_image`."""
    what = 'a PIL image'
    if image.format == 'EPS':  # decoding it would run Ghostscript
        raise unreadable(what, 'a PostScript file, no image', 'it is a program', 'convert it to PNG')
    array, _ = _rgb_array(image, what, interval(value_range, 'value_range'))
    return torch.from_numpy(array).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (H, W) of the upright image from its header alone. Raises UnreadableImage as `read_image` does."""
    return read_header(path, max_pixels=max_pixels).size


class Header(NamedTuple):
    """Header of an image file."""

    size: tuple[int, int]  # (H, W), upright
    turn: int  # EXIF orientation: 1 upright, 2..4 mirrored or turned by 180 degrees, 5..8 on its side
    bits: int  # of a channel


def read_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of an image file. Raises UnreadableImage as `read_image` does."""
    with opened(path, max_pixels) as image:
        width, height = image.size
        turn = orientation(image)
        # Pillow turns TIFF by itself, and gives the size of the turned image
        size = (width, height) if turn >= 5 and image.format != 'TIFF' else (height, width)
        return Header(size, turn, bits_of(image))


def read_label_map(
    path: str | Path, *, colors: Mapping[tuple[int, int, int], int] | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Return the label image at `path` as (H, W): uint8, or int32 where the file has more than 8 bits.

    A palette image gives its indices (as PASCAL VOC is meant), a 1-bit image 0 and 1. `colors` maps (r, g, b) to
    labels for colour-coded label images; a colour that is not in the table is an error.

    Raises DataError naming the file when it is broken, lossy (JPEG), or colour without a table.
    """
    try:
        with opened(path, max_pixels) as image:
            kind, scale = image.format, scale_of(image)
            image = loaded(image, path).copy()  # outlives the file
    except UnreadableImage as error:  # a label is never skipped, so it must not look like an image that may be
        raise DataError(error.message, where=error.where, why=error.why, fix=error.fix) from error
    if kind in ('JPEG', 'MPO'):
        raise DataError(
            f'{Path(path).name}: labels in a JPEG file',
            where=str(path),
            why='JPEG changes pixel values, and with them the labels',
            fix='store label maps as PNG',
        )
    return torch.from_numpy(_label_array(image, scale, colors, path))


def label_colors(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> list[tuple[int, int, int]] | None:
    """Return the palette of a label file, (r, g, b) for each number; None where it has none. Raises DataError."""
    with opened(path, max_pixels) as image:
        values = loaded(image, path).getpalette() if image.mode == 'P' else None
    return None if values is None else [tuple(values[start : start + 3]) for start in range(0, len(values), 3)]


def _label_array(
    image: Image.Image, scale: Scale | None, colors: Mapping[tuple[int, int, int], int] | None, path: str | Path
) -> np.ndarray:
    """Return (H, W) uint8 or int32 labels of a loaded label image."""
    array = np.array(image)
    if colors is None and image.mode in ('L', 'P'):
        return array if scale is None else stored_numbers(array, scale).astype(np.uint8)
    if colors is None and image.mode == '1':
        return array.astype(np.uint8)
    if colors is None and (image.mode == 'I' or image.mode.startswith('I;16')):
        return (array if scale is None else stored_numbers(array, scale)).astype(np.int32)
    if colors is not None and image.mode in ('RGB', 'RGBA', 'P'):
        return _labels_of_colors(np.asarray(image.convert('RGB')), colors, path)
    expected = 'a label map needs one number per pixel' if colors is None else 'a coloured label map was announced'
    if colors is None and image.mode in ('RGB', 'RGBA', 'LA') and _is_gray(array):
        raise DataError(
            f'{Path(path).name}: {expected}, this file has colour channels ({image.mode}) that are all equal',
            where=str(path),
            why='it is a gray label map that was saved as a colour image; its numbers stand in every channel',
            fix="store one channel of it, with Pillow: image.getchannel(0).save('x.png')",
        )
    raise DataError(
        f'{Path(path).name}: {expected}, this image has mode {image.mode}',
        where=str(path),
        why='each pixel of a label map is the index of its class; colours need a table that says what they mean',
        fix='store the labels as an 8-bit gray or palette PNG; or, where they are colours, give each class its colour '
        '(SegmentationDataset: palette=..., colored_labels=True)',
    )


def _is_gray(array: np.ndarray) -> bool:
    """Whether the colour channels of (H, W, C) are equal; the last of 2 or 4 is alpha."""
    colors = array[..., : array.shape[2] - (array.shape[2] in (2, 4))]
    return bool((colors == colors[..., :1]).all())


def _labels_of_colors(array: np.ndarray, colors: Mapping[tuple[int, int, int], int], path: str | Path) -> np.ndarray:
    """Return (H, W) uint8 labels of a (H, W, 3) colour-coded label image."""
    codes = array.astype(np.int32) @ np.array([65536, 256, 1], np.int32)  # (H, W, 3) -> (H, W)
    known = {red * 65536 + green * 256 + blue: label for (red, green, blue), label in colors.items()}
    table = np.array(sorted(known), np.int32)
    rows = np.searchsorted(table, codes).clip(max=len(table) - 1)
    unknown = codes[table[rows] != codes]
    if len(unknown):
        shown = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in np.unique(unknown)[:5]]
        raise DataError(
            f'{Path(path).name}: colours {shown} belong to no class',
            where=str(path),
            why=f'{len(unknown)} pixels have colours that are not in the colour table',
            fix='add the colours to the table, or to ignore=[[r, g, b], ...]',
        )
    return np.array([known[code] for code in table.tolist()], np.uint8)[rows]


# -------------------------------------------------------------------------------------------------------- decoding


def _decode_plain_jpeg(data: bytes | Path, image: Image.Image) -> np.ndarray | None:
    """Return (H, W, 3) RGB of a JPEG that OpenCV surely decodes as Pillow does, else None.

    OpenCV fills the missing part of a truncated or damaged JPEG with gray without error. One scan up to an end
    marker at the end of the file, with no stray marker inside, excludes what Pillow would refuse.
    """
    plain = (
        image.format == 'JPEG'
        and isinstance(data, bytes)
        and image.mode in ('RGB', 'L')
        and 'progression' not in image.info
        and image.info.get('adobe_transform', 1) == 1
        and orientation(image) == 1
        and _is_one_whole_scan(data)
    )
    if not plain:
        return None
    array = _decode_with_opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None or array.shape != (image.height, image.width, 3):
        return None
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB, dst=array)


def _decode_with_opencv(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _is_one_whole_scan(data: bytes) -> bool:
    """Whether the JPEG `data` ends with its end marker, and its entropy-coded data run to there without another marker.

    Inside them 0xFF is followed by 0x00 or by a restart marker 0xD0 ... 0xD7 (ITU T.81, B.1.1.5).
    """
    position, marker = 2, 0
    while marker != _START_OF_SCAN and position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    if marker != _START_OF_SCAN or position + 2 >= len(data) or not data.endswith(_JPEG_END):
        return False
    scan = np.frombuffer(data, np.uint8)[position:-1]  # up to the 0xFF of the end marker, which closes the last pair
    follows = scan[1:][scan[:-1] == 0xFF]
    return bool(((follows == 0) | (follows & 0xF8 == 0xD0)).all())


def _rgb_array(
    image: Image.Image, path: str | Path, value_range: tuple[float, float] | None
) -> tuple[np.ndarray, int | None]:
    """Return (H, W, 3) uint8 RGB of an opened image of any mode, and its largest number where it has 16 bits."""
    bits, scale = bits_of(image), scale_of(image)
    image = loaded(image, path)
    mode = image.mode
    if mode in ('I', 'F') or mode.startswith('I;16'):
        array = np.asarray(image)
        gray = _gray_levels(array, bits, scale, path, value_range)
        brightest = int(array.max()) if bits == 16 and scale is None and value_range is None else None
        return np.repeat(gray[..., None], 3, axis=2), brightest
    try:
        if mode == 'La':
            image = image.convert('LA')
        elif mode == 'RGBa' or 'transparency' in image.info:
            image = image.convert('RGBA')  # P or RGBa to RGB directly would warn or fail
        array = np.array(image.convert('RGB'))
    except Exception as error:
        raise unreadable(path, f'mode {mode} has no RGB form', reason(error), 'store it as 8-bit RGB') from error
    if value_range is not None and value_range[1] <= 255:  # other ranges are meant for files of more bits
        array = stretch(array if scale is None else stored_numbers(array, scale), value_range)
    return array, int(array.max(initial=0)) * 256 + 255 if bits == 16 and mode in DEEP_COLORS else None


def _gray_levels(
    array: np.ndarray,
    bits: int,
    scale: Scale | None,
    path: str | Path,
    value_range: tuple[float, float] | None,
) -> np.ndarray:
    """Return (H, W) uint8 of numbers (H, W) with more than 8 bits."""
    if value_range is not None:
        return stretch(array if scale is None else stored_numbers(array, scale), value_range)
    if bits == 16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
    if bits == 12:  # packed in a TIFF: their range is known
        return ((array.astype(np.uint32) * 255 + 2047) // 4095).astype(np.uint8)
    raise unreadable(
        path,
        f'{"float" if array.dtype.kind == "f" else "32-bit"} pixels without a known range',
        'nothing says which number is black and which is white; value_range=(low, high) does',
        'store the image with 8 or 16 bits, or give value_range=(low, high) to the data set or the predictor '
        '(--value-range LOW HIGH of demo.py)',
    )


def _deep_color(source: bytes | Path, image: Image.Image, path: str | Path) -> np.ndarray:
    """Return (H, W, 3) uint16 RGB of a colour image with 16 bits, upright. Pillow would keep their high byte only."""
    turn = orientation(image)
    planar = image.format == 'TIFF' and image.tag_v2.get(284, 1) == 2
    data = source if isinstance(source, bytes) else source.read_bytes()
    array = None if planar else _decode_with_opencv(data, cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        raise unreadable(
            path,
            'value_range is not possible for this colour image of 16 bits',
            f'it is a {image.format} file' + (' in planes' if planar else ' that OpenCV does not read'),
            'store it as gray, or as a 16-bit PNG or TIFF that is not planar',
        )
    if image.format != 'TIFF':  # OpenCV turns TIFF by itself, as Pillow does
        array = upright_array(array, turn)
    return array[..., :3][..., ::-1]  # BGR(A) -> RGB
