"""FI-03, FI-04 and the truth table of image decoders: what becomes of every odd file, as tensor or as error."""

from __future__ import annotations

import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.data.files.images import image_size, read_image
from vitdense.data.files.opening import UnreadableImage

pytestmark = pytest.mark.faults
SIZE = (60, 100)  # (H, W)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
RGB = np.stack([ROWS * 4, COLUMNS * 2, 255 - ROWS * 4], -1).astype(np.uint8)
GRADIENT = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
IMAGE = Image.fromarray(RGB)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def hollow_png(width: int, height: int) -> bytes:
    """Return a small PNG whose header declares a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def turned(form: str) -> bytes:
    """Return an image that lies on its side, with EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(IMAGE.transpose(Image.Transpose.ROTATE_90), form, exif=exif)


JPEG, PNG = encoded(IMAGE, 'JPEG', quality=95), encoded(IMAGE, 'PNG')
ERRORS = {
    'truncated.jpg': (JPEG[: len(JPEG) * 6 // 10], 'truncated'),
    'without_end.jpg': (JPEG[:-2], 'truncated'),
    'truncated.png': (PNG[: len(PNG) * 6 // 10], 'truncated'),
    'short.png': (hollow_png(12000, 9000), 'truncated'),
    'bomb.png': (hollow_png(60000, 60000), '3600.0 Mpx > limit 180'),
    'empty.jpg': (b'', 'empty'),
    'page.jpg': (b'<!DOCTYPE html><html></html>', 'not an image'),
    'float.tif': (encoded(Image.fromarray(np.ones(SIZE, np.float32)), 'TIFF'), 'float'),
}
IMAGES = {  # file -> its content, and the mean of its pixels; None: that of the image
    'exif6.jpg': (turned('JPEG'), None),
    'exif6.png': (turned('PNG'), None),
    'u16.png': (encoded(Image.fromarray(GRADIENT), 'PNG'), 127.5),
    'u16.tif': (encoded(Image.fromarray(GRADIENT), 'TIFF'), 127.5),
    'twelve_bits.png': (encoded(Image.fromarray(GRADIENT // 16), 'PNG'), 127.5 / 16),
    'a.bmp': (encoded(IMAGE, 'BMP'), None),
    'a.webp': (encoded(IMAGE, 'WEBP', quality=95), None),
    'a.avif': (encoded(IMAGE, 'AVIF', quality=95), None),
    'a.gif': (encoded(IMAGE, 'GIF'), None),
    'cmyk.jpg': (encoded(IMAGE.convert('CMYK'), 'JPEG', quality=95), None),
    'gray.png': (encoded(IMAGE.convert('L'), 'PNG'), None),
    'la.png': (encoded(IMAGE.convert('LA'), 'PNG'), None),
    'p.png': (encoded(IMAGE.convert('P'), 'PNG'), None),
    'one_bit.png': (encoded(IMAGE.convert('1'), 'PNG'), None),
    'rgba.png': (encoded(IMAGE.convert('RGBA'), 'PNG'), None),
}


@pytest.mark.parametrize('name', ERRORS)
def test_fi_03_files_that_are_no_image(tmp_path, name):
    content, words = ERRORS[name]
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UnreadableImage) as caught:
            read_image(tmp_path / name)
    assert caught.value.message.startswith(name) and words in str(caught.value) and caught.value.exit_code == 3
    if name == 'bomb.png':  # refused before anything is decoded
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize('name', IMAGES)
def test_fi_04_files_of_every_kind(tmp_path, name):
    content, mean = IMAGES[name]
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image = read_image(tmp_path / name)
    assert image.shape == (3, *SIZE) and image.dtype == torch.uint8 and image_size(tmp_path / name) == SIZE
    expected = RGB.mean() if mean is None else mean
    if name in ('gray.png', 'la.png', 'one_bit.png'):
        expected = np.asarray(IMAGE.convert('L')).mean()
    assert abs(float(image.float().mean()) - expected) < 2
    if mean is None and image[0].ne(image[1]).any() and name not in ('a.gif', 'p.png'):
        assert (image.float() - torch.from_numpy(RGB).permute(2, 0, 1)).abs().mean() < 4  # upright, too
