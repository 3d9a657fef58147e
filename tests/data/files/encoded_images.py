"""Encoded images for tests, whole and damaged."""

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def hollow_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header declares a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0' * 10)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body
