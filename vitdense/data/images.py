"""Picture files to RGB tensors, label files to label maps: strict about broken files, kind about formats.

Pillow decodes. A plain baseline JPEG goes to OpenCV instead, which is faster and gives the same pixels (both are
libjpeg-turbo), but only after Pillow has read its header and nothing about it is in doubt.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from vitdense.errors import DataError

MAX_PIXELS = 180_000_000
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.avif')
LABEL_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff', '.gif')

_PILLOW_STATE = threading.Lock()
_JPEG_END = b'\xff\xd9'
_START_OF_SCAN = 0xDA
_UPRIGHT = {  # EXIF orientation -> what brings the picture upright (Exif 2.32, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)


class UnreadablePicture(DataError):
    """A picture file that cannot be decoded. Training may replace the picture; evaluation never does."""


def read_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Return the picture at `path`, upright, as (3, H, W) uint8 RGB. The file is only read, never written.

    Gray, palette, 1-bit, CMYK and animated pictures (first frame) become RGB; an alpha channel is dropped, not
    composited. 16-bit gray is divided by 257. `value_range = (low, high)` is for pictures whose numbers have no
    fixed meaning (float, 32-bit, 12 bits stored in 16): low becomes 0, high 255, values beyond are clipped.
    The memory is channels last (a view of (H, W, 3)), as decoders and OpenCV lay pictures out.

    Raises UnreadablePicture (a DataError) naming the file when it is missing, empty, no picture, truncated, larger
    than `max_pixels` (checked in the header, before anything is decoded), or needs a `value_range`.
    """
    data = _read_bytes(path)
    with _opened(data, path, max_pixels) as picture:
        array = _decode_plain_jpeg(data, picture) if value_range is None else None
        if array is None:
            array = _rgb_array(_load(picture, path), path, value_range)
    return torch.from_numpy(array).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def from_pil(picture: Image.Image, *, value_range: tuple[float, float] | None = None) -> Tensor:
    """Return an open Pillow picture as (3, H, W) uint8 RGB, by the rules of `read_image`."""
    array = _rgb_array(_load(picture, 'a PIL picture'), 'a PIL picture', value_range)
    return torch.from_numpy(array).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (H, W) of the upright picture from its header alone. Raises UnreadablePicture as `read_image` does."""
    with _opened(path, path, max_pixels) as picture:
        width, height = picture.size
        # Pillow turns TIFF by itself, and gives the size of the turned picture
        turned = picture.format != 'TIFF' and _orientation(picture) >= 5
    return (width, height) if turned else (height, width)


def read_label_map(
    path: str | Path, *, colors: Mapping[tuple[int, int, int], int] | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Return the label picture at `path` as (H, W): uint8, or int32 where the file has more than 8 bits.

    A palette picture gives its indices (as PASCAL VOC is meant), a 1-bit picture 0 and 1. `colors` maps (r, g, b) to
    labels for colour-coded label pictures; a colour that is not in the table is an error.

    Raises DataError naming the file when it is broken, lossy (JPEG), or colour without a table.
    """
    try:
        with _opened(path, path, max_pixels) as picture:
            kind = picture.format
            picture = _load(picture, path).copy()  # outlives the file
    except UnreadablePicture as error:  # a label is never skipped, so it must not look like a picture that may be
        raise DataError(error.message, where=error.where, why=error.why, fix=error.fix) from error
    if kind in ('JPEG', 'MPO'):
        raise DataError(
            f'{Path(path).name}: labels in a JPEG file',
            where=str(path),
            why='JPEG changes pixel values, and with them the labels',
            fix='store label maps as PNG',
        )
    return torch.from_numpy(_label_array(picture, colors, path))


def _label_array(
    picture: Image.Image, colors: Mapping[tuple[int, int, int], int] | None, path: str | Path
) -> np.ndarray:
    """Return (H, W) uint8 or int32 labels of a loaded label picture."""
    array = np.array(picture)
    if colors is None and picture.mode in ('L', 'P'):
        return array
    if colors is None and picture.mode == '1':
        return array.astype(np.uint8)
    if colors is None and (picture.mode == 'I' or picture.mode.startswith('I;16')):
        return array.astype(np.int32)
    if colors is not None and picture.mode in ('RGB', 'RGBA', 'P'):
        return _labels_of_colors(np.asarray(picture.convert('RGB')), colors, path)
    expected = 'a label map needs one number per pixel' if colors is None else 'a coloured label map was announced'
    raise DataError(
        f'{Path(path).name}: {expected}, this picture has mode {picture.mode}',
        where=str(path),
        why='each pixel of a label map is the index of its class; colours need a table that says what they mean',
        fix='store the labels as an 8-bit gray or palette PNG; or, where they are colours, give each class its colour '
        '(SegmentationMaps: palette=..., colored_labels=True)',
    )


def _labels_of_colors(array: np.ndarray, colors: Mapping[tuple[int, int, int], int], path: str | Path) -> np.ndarray:
    """Return (H, W) uint8 labels of a (H, W, 3) colour-coded label picture."""
    codes = array.astype(np.int32) @ np.array([65536, 256, 1], np.int32)  # (H, W, 3) -> (H, W)
    known = {red * 65536 + green * 256 + blue: label for (red, green, blue), label in colors.items()}
    table = np.array(sorted(known), np.int32)
    rows = np.searchsorted(table, codes).clip(max=len(table) - 1)
    strange = codes[table[rows] != codes]
    if len(strange):
        shown = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in np.unique(strange)[:5]]
        raise DataError(
            f'{Path(path).name}: colours {shown} belong to no class',
            where=str(path),
            why=f'{len(strange)} pixels have colours that are not in the colour table',
            fix='add the colours to the table, or to ignore=[[r, g, b], ...]',
        )
    return np.array([known[code] for code in table.tolist()], np.uint8)[rows]


# --------------------------------------------------------------------------------------------------------- opening


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unreadable(path, 'cannot be read', str(error), 'check the path and the permissions') from error


@contextmanager
def _opened(source: bytes | str | Path, path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture with Pillow, header only, and refuse it when it is larger than `max_pixels`."""
    picture = _open(source, path)
    try:
        width, height = picture.size
        if width * height > max_pixels:
            raise _unreadable(
                path,
                f'{width * height / 1e6:.1f} Mpx > limit {max_pixels / 1e6:g}',
                f'its header declares {width} x {height} pixels, which could fill the memory',
                'shrink the picture, or raise the limit (max_pixels) if you trust it',
            )
        yield picture
    finally:
        picture.close()


def _open(source: bytes | str | Path, path: str | Path) -> Image.Image:
    if isinstance(source, bytes) and not source:
        raise _unreadable(path, 'the file is empty', 'it has 0 bytes', 'copy or download the file again')
    try:
        # our own limit replaces Pillow's (a warning, then an error without the file's name), which is process-wide
        with _PILLOW_STATE:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except UnidentifiedImageError as error:
        raise _unreadable(
            path, 'not a picture', 'no known picture format begins like this file', 'remove or replace the file'
        ) from error
    except _BROKEN as error:
        raise _unreadable(path, 'cannot be opened', str(error), 'check the path, or copy the file again') from error


def _load(picture: Image.Image, path: str | Path) -> Image.Image:
    """Decode the pixels and bring the picture upright."""
    try:
        if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library made Pillow lenient
            with _PILLOW_STATE:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                try:
                    picture.load()
                finally:
                    ImageFile.LOAD_TRUNCATED_IMAGES = True
        else:
            picture.load()
    except _BROKEN as error:
        reason = 'truncated or damaged'
        raise _unreadable(path, reason, str(error), 'copy or download the file again, or remove it') from error
    turn = _UPRIGHT.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) when there is none or the EXIF block is damaged."""
    if picture.format == 'JPEG' and not {'exif', 'xmp'} & picture.info.keys():
        return 1  # saves the parser for the many pictures that have neither block
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1
    return value if value in _UPRIGHT else 1


def _unreadable(path: str | Path, what: str, why: str, fix: str) -> UnreadablePicture:
    return UnreadablePicture(f'{Path(path).name}: {what}', where=str(path), why=why, fix=fix)


# -------------------------------------------------------------------------------------------------------- decoding


def _decode_plain_jpeg(data: bytes, picture: Image.Image) -> np.ndarray | None:
    """Return (H, W, 3) RGB of a JPEG that OpenCV surely decodes as Pillow does, else None.

    OpenCV fills the missing part of a truncated or damaged JPEG with gray and says nothing. One scan up to an end
    marker at the end of the file, with no stray marker inside, excludes what Pillow would refuse.
    """
    plain = (
        picture.format == 'JPEG'
        and picture.mode in ('RGB', 'L')
        and 'progression' not in picture.info
        and picture.info.get('adobe_transform', 1) == 1
        and _orientation(picture) == 1
        and _is_one_whole_scan(data)
    )
    if not plain:
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if array is None or array.shape != (picture.height, picture.width, 3):
        return None
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB, dst=array)


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


def _rgb_array(picture: Image.Image, path: str | Path, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a loaded picture of any mode."""
    mode = picture.mode
    if mode in ('I', 'F') or mode.startswith('I;16'):
        gray = _gray_levels(np.asarray(picture), mode, path, value_range)
        return np.repeat(gray[..., None], 3, axis=2)
    try:
        if mode == 'La':
            picture = picture.convert('LA')
        elif mode == 'RGBa' or 'transparency' in picture.info:
            picture = picture.convert('RGBA')  # P or RGBa to RGB directly would warn or fail
        array = np.array(picture.convert('RGB'))
    except _BROKEN as error:
        raise _unreadable(path, f'mode {mode} has no RGB form', str(error), 'store it as 8-bit RGB') from error
    return array if value_range is None else _stretch(array, value_range)


def _gray_levels(array: np.ndarray, mode: str, path: str | Path, value_range: tuple[float, float] | None) -> np.ndarray:
    if value_range is not None:
        return _stretch(array, value_range)
    if mode.startswith('I;16'):
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
    raise _unreadable(
        path,
        f'{"float" if mode == "F" else "32-bit"} pixels without a known range',
        'nothing says which number is black and which is white',
        'store the picture with 8 or 16 bits, or give value_range=(low, high)',
    )


def _stretch(array: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return (np.nan_to_num((array.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
