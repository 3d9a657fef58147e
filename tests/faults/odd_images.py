"""Image files of every kind that decoders meet: some are images, some are refused."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.data.files.encoded_images import encoded, hollow_png

SIZE = (60, 100)  # (H, W)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
RGB = np.stack([ROWS * 4, COLUMNS * 2, 255 - ROWS * 4], -1).astype(np.uint8)
GRADIENT = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
IMAGE = Image.fromarray(RGB)


def turned(form: str) -> bytes:
    """Return an image that lies on its side, with EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(IMAGE.transpose(Image.Transpose.ROTATE_90), form, exif=exif)


JPEG, PNG = encoded(IMAGE, 'JPEG', quality=95), encoded(IMAGE, 'PNG')
REJECTED = {
    'truncated.jpg': JPEG[: len(JPEG) * 6 // 10],
    'without_end.jpg': JPEG[:-2],
    'truncated.png': PNG[: len(PNG) * 6 // 10],
    'short.png': hollow_png(12000, 9000),
    'bomb.png': hollow_png(60000, 60000),
    'empty.jpg': b'',
    'page.jpg': b'<!DOCTYPE html><html></html>',
    'float.tif': encoded(Image.fromarray(np.ones(SIZE, np.float32)), 'TIFF'),
}
IMAGES = {
    'exif6.jpg': turned('JPEG'),
    'exif6.png': turned('PNG'),
    'u16.png': encoded(Image.fromarray(GRADIENT), 'PNG'),
    'u16.tif': encoded(Image.fromarray(GRADIENT), 'TIFF'),
    'twelve_bits.png': encoded(Image.fromarray(GRADIENT // 16), 'PNG'),
    'a.bmp': encoded(IMAGE, 'BMP'),
    'a.webp': encoded(IMAGE, 'WEBP', quality=95),
    'a.avif': encoded(IMAGE, 'AVIF', quality=95),
    'a.gif': encoded(IMAGE, 'GIF'),
    'cmyk.jpg': encoded(IMAGE.convert('CMYK'), 'JPEG', quality=95),
    'gray.png': encoded(IMAGE.convert('L'), 'PNG'),
    'la.png': encoded(IMAGE.convert('LA'), 'PNG'),
    'p.png': encoded(IMAGE.convert('P'), 'PNG'),
    'one_bit.png': encoded(IMAGE.convert('1'), 'PNG'),
    'rgba.png': encoded(IMAGE.convert('RGBA'), 'PNG'),
}
