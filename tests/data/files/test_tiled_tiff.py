"""Windows of TIFF files: the same pixels as when the file is read whole, and only the tiles that are needed."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.data.files import tiled_tiff
from vitdense.data.files.images import read_image
from vitdense.data.files.opening import UnreadableImage
from vitdense.data.files.tiled_tiff import TiledTiff

PIXELS = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
WINDOWS = [(0, 0, 70, 90), (5, 7, 40, 40), (69, 89, 1, 1), (31, 15, 33, 50)]


def write_tiled(
    path: Path,
    pixels: np.ndarray,
    side: int,
    *,
    width_of_tile: int | None = None,
    order: str = '<',
    deflate: bool = True,
) -> Path:
    """Write a tiled TIFF (TIFF 6.0, section 15) of (H, W, 3) uint8, without the help of what is tested."""
    height, width = pixels.shape[:2]
    across = width_of_tile or side
    padded = np.pad(pixels, ((0, -height % side), (0, -width % across), (0, 0)))
    tiles = []
    for top in range(0, height, side):
        for left in range(0, width, across):
            data = np.ascontiguousarray(padded[top : top + side, left : left + across]).tobytes()
            tiles.append(zlib.compress(data) if deflate else data)
    starts = np.cumsum([8, *map(len, tiles)])
    lists = struct.pack(f'{order}{2 * len(tiles)}I3H', *starts[:-1], *map(len, tiles), 8, 8, 8)
    at = int(starts[-1])
    rows = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at + 8 * len(tiles)), (259, 3, 1, 8 if deflate else 1)]
    rows += [(262, 3, 1, 2), (277, 3, 1, 3), (322, 4, 1, across), (323, 4, 1, side)]
    rows += [(324, 4, len(tiles), at), (325, 4, len(tiles), at + 4 * len(tiles))]
    directory = struct.pack(f'{order}H', len(rows))
    for tag, kind, count, value in rows:
        short = kind == 3 and count == 1
        directory += struct.pack(f'{order}HHI' + ('HH' if short else 'I'), tag, kind, count, value, *([0] * short))
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', at + len(lists))
    path.write_bytes(head + b''.join(tiles) + lists + directory + bytes(4))
    return path


def same_windows(path: Path, **options) -> TiledTiff:
    tiff, whole = TiledTiff.of(path, **options), read_image(path, **options)
    assert tiff.shape == tuple(whole.shape)
    for top, left, height, width in WINDOWS:
        window = tiff.read(top, left, height, width)
        assert torch.equal(window, whole[:, top : top + height, left : left + width])
    assert torch.equal(tiff.preview(7), whole[:, ::7, ::7])
    return tiff


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('deflate', [True, False])
def test_windows_of_tiles(tmp_path, order, deflate):
    path = write_tiled(tmp_path / 'a.tif', PIXELS, 32, width_of_tile=16, order=order, deflate=deflate)
    same_windows(path)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), PIXELS)


MODES = ('RGB', 'L', 'RGBA', 'CMYK', 'P', 'I;16', 'LA')
STRIPS = [*((mode, 'tiff_lzw') for mode in MODES), *((mode, 'tiff_adobe_deflate') for mode in MODES)]
STRIPS += [('1', 'group4'), ('1', 'packbits'), ('RGB', 'jpeg'), ('L', 'jpeg'), ('CMYK', 'jpeg')]


@pytest.mark.parametrize(('mode', 'compression'), STRIPS)
def test_windows_of_strips(tmp_path, mode, compression):
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 250)
    image = deep if mode == 'I;16' else Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / 'a.tif', compression=compression, tiffinfo={278: 16})
    tiff = same_windows(tmp_path / 'a.tif', value_range=(100, 9000) if mode == 'I;16' else None)
    assert len(tiff._parts) == 5


def test_a_strip_of_the_whole_image_without_compression_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tiled_tiff, 'LARGEST_PART', 20000)
    Image.fromarray(PIXELS).save(tmp_path / 'a.tif')
    assert len(same_windows(tmp_path / 'a.tif')._parts) == 2  # of 35 rows
    Image.fromarray(PIXELS).save(tmp_path / 'b.tif', compression='tiff_lzw', tiffinfo={278: 70})
    monkeypatch.setattr(tiled_tiff, 'LARGEST_PART', 10000)
    assert TiledTiff.of(tmp_path / 'b.tif') is None  # has to be decoded as a whole


def test_only_the_tiles_of_a_window_are_decoded_and_few_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tiled_tiff, 'CACHE', 3 * 32 * 32 * 3)
    tiff, decoded = TiledTiff.of(write_tiled(tmp_path / 'a.tif', PIXELS, 32)), []
    original = tiled_tiff.decode_image
    monkeypatch.setattr(tiled_tiff, 'decode_image', lambda *a, **k: decoded.append(1) or original(*a, **k))
    tiff.read(0, 0, 32, 32)
    assert len(decoded) == 1
    tiff.read(0, 20, 32, 20)
    assert len(decoded) == 2  # the first is still there
    tiff.read(0, 0, 70, 90)
    assert len(decoded) == 9 and len(tiff._slots) == 3


def test_other_files_and_turned_ones_are_read_whole(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'a.png')
    Image.fromarray(PIXELS).save(tmp_path / 'b.tif', tiffinfo={274: 6})
    assert TiledTiff.of(tmp_path / 'a.png') is None and TiledTiff.of(tmp_path / 'b.tif') is None


@pytest.mark.faults
@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_and_too_large_files_are_named(tmp_path):
    path = write_tiled(tmp_path / 'a.tif', PIXELS, 32)
    with pytest.raises(UnreadableImage, match=r'a\.tif: more than 0\.001 Mpx'):
        TiledTiff.of(path, max_pixels=1000)
    content = path.read_bytes()
    path.write_bytes(content[:9] + bytes(40) + content[49:])
    with pytest.raises(UnreadableImage, match=r'a\.tif: truncated or damaged'):
        TiledTiff.of(path).read(0, 0, 10, 10)
    path.write_bytes(content.replace(struct.pack('<HHII', 256, 4, 1, 90), struct.pack('<HHII', 256, 4, 1, 9000)))
    with pytest.raises(UnreadableImage, match=r'a\.tif: a damaged TIFF'):
        TiledTiff.of(path)
    path.write_bytes(content[:-60])
    assert TiledTiff.of(path) is None  # what is wrong is said when it is read whole
    with pytest.raises(UnreadableImage, match=r'a\.tif: '):
        read_image(path)
