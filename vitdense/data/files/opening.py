"""Safe opening of image files: regular files of known formats, with the size checked before decoding."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from vitdense.data.shards.shard_files import ShardFile
from vitdense.errors import DataError

MAX_PIXELS = 180_000_000
MAX_BYTES = 2**31  # of an image file: more than 180 Mpx of 16-bit RGBA need
IN_MEMORY = 2**26  # a larger file is not read at once: its decoder reads what it needs
# all that is ever opened; among Pillow's other formats EPS would run Ghostscript, whatever the file's name is
FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'AVIF', 'PPM', 'JPEG2000')
IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jfif', '.jpe', '.mpo', '.png', '.apng', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.avif'),
    *('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.j2c', '.jpx'),
)

_PILLOW_STATE = threading.Lock()
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_BEGINNINGS = (  # the first bytes of the formats above
    *(b'\xff\xd8\xff', b'\x89PNG', b'BM', b'GIF8', *_TIFF, b'\xff\x4f\xff\x51', b'\0\0\0\x0cjP  '),
    *(b'P%d%b' % (kind, space) for kind in range(1, 7) for space in (b'\n', b'\r', b' ')),
)
_OTHERS = {  # what users take for an image, and what it is
    b'%!PS': 'a PostScript (EPS) file',
    b'\xc5\xd0\xd3\xc6': 'a PostScript (EPS) file',
    b'%PDF': 'a PDF file',
    b'8BPS': 'a Photoshop file',
    b'SIMPLE': 'a FITS file',
    b'\x89HDF': 'an HDF5 file',
    b'\x93NUMPY': 'a NumPy file',
    b'<svg': 'an SVG file',
    b'version https://git-lfs': 'a pointer of Git LFS, not the file itself (git lfs pull fetches it)',
}
_UPRIGHT = {  # EXIF orientation -> what brings the image upright (Exif 2.32, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(DataError):
    """An image file that cannot be decoded. Training may replace the image; evaluation never does."""


def unreadable(path: str | Path, what: str, why: str, fix: str) -> UnreadableImage:
    """Return the error that `path` is `what`."""
    return UnreadableImage(f'{Path(path).name}: {what}', where=str(path), why=why, fix=fix)


def image_source(path: str | Path) -> bytes | Path:
    """Return the content of an image file, or its path when it is too large to be read at once.

    Raises UnreadableImage as `file_size` does.
    """
    if isinstance(path, ShardFile):
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable_file(path, error) from error
    size = file_size(path)
    if size > IN_MEMORY:
        return Path(path)
    try:
        with open(path, 'rb') as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable_file(path, error) from error


def file_size(path: str | Path, *, most: int | None = MAX_BYTES) -> int:
    """Return the bytes of an image file.

    Raises UnreadableImage for what is missing, empty, no regular file (a folder, a pipe, a device), or larger than
    `most`. Nothing but a regular file may be opened: reading a pipe or a device may never end.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unreadable_file(path, error) from error
    if not stat.S_ISREG(state.st_mode):
        what = 'a folder' if stat.S_ISDIR(state.st_mode) else 'a pipe or a device'
        fix = 'give the files that it holds' if stat.S_ISDIR(state.st_mode) else 'give a file'
        raise unreadable(path, f'cannot be read: {what}', 'an image is a regular file', fix)
    if most is not None and state.st_size > most:
        why = f'it has {state.st_size:,} bytes, and the limit is {most:,}'
        raise unreadable(path, 'the file is too large', why, 'shrink the image, or remove the file')
    if not state.st_size:
        raise unreadable(path, 'the file is empty', 'it has 0 bytes', 'copy or download the file again')
    return state.st_size


def _unreadable_file(path: str | Path, error: Exception) -> UnreadableImage:
    return unreadable(path, 'cannot be read', str(error), 'check the path and the permissions')


def begins_like_image(path: Path) -> bool:
    """Whether the regular file `path` begins as one of `FORMATS` does, whatever its name is."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, 'rb') as file:
            head = file.read(32)
    except (OSError, ValueError):  # ValueError: a name with a zero byte, as it may stand in a shard
        return False
    boxed = (head[:4] == b'RIFF' and head[8:12] == b'WEBP') or head[4:12] in (b'ftypavif', b'ftypavis')
    return boxed or head.startswith(_BEGINNINGS)


@contextmanager
def opened(path: str | Path, max_pixels: int, *, source: bytes | Path | None = None) -> Iterator[Image.Image]:
    """Open an image with Pillow, header only; `source` is the result of `image_source`, if known.

    Raises UnreadableImage when it is none, or has more than `max_pixels`.
    """
    if isinstance(path, ShardFile):
        source = image_source(path) if source is None else source
    elif source is None:
        file_size(path)
    image = _open(Path(path) if source is None else source, path)
    try:
        width, height = image.size
        if width * height > max_pixels:
            raise unreadable(
                path,
                f'{width * height / 1e6:.1f} Mpx > limit {max_pixels / 1e6:g}',
                f'its header declares {width} x {height} pixels, which could fill the memory',
                'shrink the image, raise the limit (max_pixels) if you trust it, or predict a TIFF in windows (tile)',
            )
        yield image
    finally:
        image.close()


def _open(source: bytes | Path, path: str | Path) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # our own limit replaces Pillow's (a warning, then an error without the file's name), which is process-wide
        with _PILLOW_STATE:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(stream, formats=FORMATS)
                return _with_libtiff(stream, image) if _misread(image) else image
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except UnidentifiedImageError as error:
        raise _not_an_image(source, path) from error
    except Exception as error:  # every decoder has errors of its own
        raise unreadable(path, 'cannot be opened', reason(error), 'copy the file again, or remove it') from error


def _misread(image: Image.Image) -> bool:
    """Whether Pillow reads this TIFF wrongly: it takes planes without compression for bytes, whatever they hold."""
    if image.format != 'TIFF' or image.use_load_libtiff:
        return False
    tags = image.tag_v2
    plain = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) == {8} and tags.get(TiffImagePlugin.FILLORDER, 1) == 1
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    return tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and (not plain or inverted)


def _with_libtiff(stream: IO[bytes] | Path, image: Image.Image) -> Image.Image:
    """Open a TIFF again so that libtiff decodes it. Pillow's state is ours meanwhile."""
    if isinstance(stream, Path):
        image.close()
    before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
    try:
        return Image.open(stream, formats=('TIFF',))
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


def _not_an_image(source: bytes | Path, path: str | Path) -> UnreadableImage:
    """Return the error for a file that Pillow does not take, with what it is where that is known."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        head = file.read(32)
        if head.startswith(_TIFF):
            return unreadable(path, *_describe_tiff(file), 'store it as 8- or 16-bit RGB or gray')
    known = next((what for begin, what in _OTHERS.items() if head.startswith(begin)), None)
    if known is None and head[4:8] == b'ftyp' and head[8:12] in (b'heic', b'heix', b'mif1', b'msf1', b'hevc'):
        known = 'a HEIC file, as phones store photos: convert it to JPEG'
    why = f'it is {known}' if known else 'no known image format begins like this file'
    return unreadable(path, 'not an image', f'{why}; read are {", ".join(FORMATS)}', 'remove or replace the file')


def _describe_tiff(file: IO[bytes]) -> tuple[str, str]:
    """Return the content of an unsupported TIFF and the reason, as text."""
    file.seek(0)
    try:
        head = file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if b'+' in head[:4] else b''))
        file.seek(tags.next)
        tags.load(file)
        int(tags[256]), int(tags[257])  # a directory that was cut has no size
        bands, bits = int(tags.get(277, 1)), sorted(set(tags.get(258, (1,))))
        kind = {2: 'signed ', 3: 'float ', 5: 'complex ', 6: 'complex '}.get(tags.get(339, (1,))[0], '')
        marked = int(tags.get(262, 1))
    except Exception:  # whatever a damaged directory makes of Pillow
        return 'a damaged TIFF file', 'its directory cannot be read'
    words = f'{bands} band{"s" * (bands != 1)} of {" and ".join(map(str, bits))} {kind}bits'
    colour = '' if bands < 3 or marked == 2 else ', not marked as RGB'
    return f'a TIFF file with {words}{colour}', 'bands in this form have no known meaning as colours'


def loaded(image: Image.Image, path: str | Path) -> Image.Image:
    """Decode the pixels and bring the image upright. Raises UnreadableImage whatever the decoder raises."""
    try:
        if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library made Pillow lenient
            with _PILLOW_STATE:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                try:
                    image.load()
                finally:
                    ImageFile.LOAD_TRUNCATED_IMAGES = True
        else:
            image.load()
        turn = _UPRIGHT.get(orientation(image))
        return image if turn is None else image.transpose(turn)
    except Exception as error:
        fix = 'copy or download the file again, or remove it'
        raise unreadable(path, 'truncated or damaged', reason(error), fix) from error


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) when there is none or the EXIF block is damaged."""
    if image.format == 'JPEG' and not {'exif', 'xmp'} & image.info.keys():
        return 1  # saves the parser for the many images that have neither block
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _UPRIGHT else 1
    except Exception:  # whatever a damaged block makes of Pillow
        return 1


def upright_array(array: np.ndarray, turn: int) -> np.ndarray:
    """Return (H, W, ...) turned upright by its EXIF orientation `turn`."""
    array = array.swapaxes(0, 1) if turn >= 5 else array
    down, right = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return array[:: -1 if down else 1, :: -1 if right else 1]


def reason(error: Exception) -> str:
    """Return the message of an exception, or its type if that is empty."""
    return str(error) or type(error).__name__
