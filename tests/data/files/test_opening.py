"""Files that are opened, and how: regular files of the promised formats, whatever a decoder raises."""

import io
import os
import re
import struct
import subprocess
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from vitdense.data.files import opening
from vitdense.data.files.images import UnreadableImage, from_pil, image_size, label_colors, read_image, read_label_map
from vitdense.data.files.listing import read_text
from vitdense.data.files.opening import FORMATS, begins_like_image, image_source
from vitdense.errors import DataError

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n'
PAGE = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 3))


def tiff(array: np.ndarray, *, order='<', planar=True, deflate=False, tile=None, photometric=2) -> bytes:
    """A TIFF of an (H, W, C) array as tifffile or GDAL write it: one plane after the other, or pixel by pixel."""
    height, width, bands = array.shape
    array = array.astype(array.dtype.newbyteorder(order))
    channels = [array[..., k] for k in range(bands)] if planar else [array.reshape(height, width * bands)]
    if tile:
        padded = [np.pad(pixels, ((0, -height % tile), (0, -width % tile))) for pixels in channels]
        cells = product(padded, range(0, height, tile), range(0, width, tile))
        parts = [pixels[y : y + tile, x : x + tile].tobytes() for pixels, y, x in cells]
    else:
        parts = [pixels[y : y + 16].tobytes() for pixels in channels for y in range(0, height, 16)]
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    where, sizes = (324, 325) if tile else (273, 279)
    tags = {256: [width], 257: [height], 258: [array.itemsize * 8] * bands, 259: [8 if deflate else 1]}
    tags |= {262: [photometric], where: [0] * len(parts), 277: [bands], sizes: [len(part) for part in parts]}
    tags |= {322: [tile], 323: [tile]} if tile else {278: [16]}
    tags |= {284: [2 if planar else 1]} | ({338: [2]} if bands == 4 else {})
    return written(tags, parts, order, where)


def written(tags: dict[int, list[int]], parts: list[bytes], order: str, where: int) -> bytes:
    start = 8 + 2 + 12 * len(tags) + 4
    long = {tag: values for tag, values in sorted(tags.items()) if len(values) > 1}
    offset = start + sum(4 * len(values) for values in long.values())
    offsets = np.cumsum([offset, *map(len, parts)])[:-1].tolist()
    directory, extra = struct.pack(f'{order}H', len(tags)), b''
    for tag, values in sorted(tags.items()):
        values = offsets if tag == where else values
        location = start + len(extra) if tag in long else values[0]
        directory += struct.pack(f'{order}HHII', tag, 4, len(values), location)
        extra += struct.pack(f'{order}{len(values)}I', *values) if tag in long else b''
    head = struct.pack(f'{order}2sHI', b'II' if order == '<' else b'MM', 42, 8)
    return head + directory + bytes(4) + extra + b''.join(parts)


@pytest.fixture
def store(tmp_path):
    def write(name: str, data: bytes):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize('open_file', [read_image, image_size, read_label_map, lambda path: from_pil(Image.open(path))])
def test_no_image_file_starts_a_program(store, monkeypatch, open_file):
    ran = []
    monkeypatch.setattr(subprocess, 'check_call', lambda *words, **options: ran.append(words))
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', 'gs')
    with pytest.raises(DataError, match='not an image|no image'):
        open_file(store('a.jpg', EPS))
    assert ran == []


def test_only_promised_formats_are_opened(store):
    Image.init()
    others = sorted(set(Image.SAVE) - {*FORMATS, 'PDF', 'MPO', 'JPEG2000', 'DIB', 'EPS'})
    assert len(others) > 10
    for kind in others:
        stream = io.BytesIO()
        try:
            PAGE.convert('1' if kind in ('XBM', 'MSP') else 'RGB').save(stream, kind)
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # this Pillow does not write it
        with pytest.raises(UnreadableImage):
            read_image(store('a.png', stream.getvalue()))


def test_images_are_opened_in_one_module_only():
    """Image.open without formats, cv2.imread and torchvision.io would bring all decoders back."""
    root = Path(opening.__file__).parents[2]
    files = [path for folder in ('vitdense', 'tools') for path in (root / folder).rglob('*.py')]
    calls = re.compile(r'Image\.open\((?!stream, formats=)|cv2\.imread|torchvision\.io|decode_image')
    assert [str(path) for path in files if calls.search(path.read_text())] == []


@pytest.mark.parametrize('kind', FORMATS)
def test_all_promised_formats_are_opened_and_known_by_their_beginning(store, kind):
    if kind == 'AVIF' and 'AVIF' not in (Image.init() or Image.SAVE):
        pytest.skip('this Pillow has no AVIF')
    stream = io.BytesIO()
    PAGE.save(stream, kind)
    path = store('a.anything', stream.getvalue())
    assert read_image(path).shape == (3, 48, 64) and begins_like_image(path)


def test_files_of_other_kinds_are_called_by_what_they_are(store):
    for data, words in (
        (EPS, 'PostScript'),
        (b'%PDF-1.7', 'a PDF file'),
        (b'\0\0\0\x18ftypheic' + bytes(20), 'HEIC'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    ):
        path = store('a.jpg', data)
        with pytest.raises(UnreadableImage, match=words):
            read_image(path)
        assert not begins_like_image(path)


@pytest.mark.parametrize('stage', ['open', 'load', 'convert', 'transpose'])
@pytest.mark.parametrize('error', [RuntimeError('Failed to decode frame 0'), ZeroDivisionError(), MemoryError()])
def test_whatever_a_decoder_raises_the_image_is_bad(store, monkeypatch, stage, error):
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    PAGE.convert('P').save(stream, 'PNG', exif=exif)
    path = store('a.png', stream.getvalue())

    def fail(*args, **options):
        raise error

    location = (Image, 'open') if stage == 'open' else (Image.Image, stage)
    location = (type(Image.open(path)), stage) if stage == 'load' else location
    monkeypatch.setattr(*location, fail)
    with pytest.raises(UnreadableImage, match=r'a\.png') as caught:
        read_image(path)
    assert str(error) in caught.value.why or type(error).__name__ in caught.value.why


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'zero.png').symlink_to('/dev/zero')
    for name in ('pipe.png', 'folder.png', 'zero.png'):
        for read in (read_image, image_size, read_label_map):
            with pytest.raises(DataError, match='cannot be read: a (pipe|folder)'):
                read(tmp_path / name)
        with pytest.raises(ValueError, match='not a regular file'):
            read_text(tmp_path / name)
        assert not begins_like_image(tmp_path / name)


def test_a_file_of_many_bytes_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with open(tmp_path / 'sparse.webp', 'wb') as file:
        file.truncate(2**42)
    for read in (read_image, image_size, read_label_map):
        with pytest.raises(DataError, match='the file is too large'):
            read(tmp_path / 'sparse.webp')
    with pytest.raises(ValueError, match='bytes'):
        read_text(tmp_path / 'sparse.webp')


def test_large_files_are_decoded_from_the_disk_to_the_same_pixels(tmp_path, monkeypatch):
    PAGE.save(tmp_path / 'a.jpg')
    expected = read_image(tmp_path / 'a.jpg')
    monkeypatch.setattr(opening, 'IN_MEMORY', 100)
    assert image_source(tmp_path / 'a.jpg') == tmp_path / 'a.jpg'
    assert (read_image(tmp_path / 'a.jpg') == expected).all()


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize(('bands', 'deflate', 'tile'), list(product((1, 3, 4), (False, True), (None, 32))))
def test_planes_of_sixteen_bits_are_read_as_such(store, order, bands, deflate, tile):
    """The high byte, as of 16-bit colour in any other file; of one plane the gray level."""
    array = np.random.default_rng(0).integers(0, 2**16, (48, 64, bands)).astype(np.uint16)
    options = dict(order=order, deflate=deflate, tile=tile, photometric=2 if bands > 1 else 1)
    img = read_image(store('a.tif', tiff(array, **options))).permute(1, 2, 0).numpy()
    assert (img == ((array + 128.0) // 257 if bands == 1 else array[..., :3] >> 8)).all()


def test_planes_of_eight_bits_are_read_as_before(store):
    array = np.asarray(PAGE)
    for planar, tile in product((True, False), (None, 32)):
        if planar or tile is None:
            img = read_image(store('a.tif', tiff(array, planar=planar, tile=tile)))
            assert (img.permute(1, 2, 0).numpy() == array).all()


def test_tiff_files_that_cannot_be_read_are_described(store):
    array = np.zeros((48, 64, 5), np.uint8)
    for data, words in (
        (tiff(array, photometric=1), '5 bands of 8 bits, not marked as RGB'),
        (tiff(array[..., :3], photometric=1, planar=False), '3 bands of 8 bits, not marked as RGB'),
        (tiff(array[..., :3].astype(np.uint16), photometric=1), '3 bands of 16 bits, not marked as RGB'),
        (tiff(array)[:30], 'a damaged TIFF file'),
    ):
        with pytest.raises(UnreadableImage, match=words):
            read_image(store('a.tif', data))


@pytest.mark.parametrize('kind', FORMATS)
def test_damaged_files_of_every_format_are_bad_images_or_images(store, kind):
    """Cut or changed anywhere: a decoder may find out when it opens, loads, converts, or never."""
    if kind == 'AVIF' and 'AVIF' not in (Image.init() or Image.SAVE):
        pytest.skip('this Pillow has no AVIF')
    rng, stream = np.random.default_rng(0), io.BytesIO()
    PAGE.convert('P' if kind in ('PNG', 'GIF') else 'RGB').save(stream, kind)
    whole, rejected = stream.getvalue(), 0
    for turn in range(24):
        data = bytearray(whole)
        if turn % 3:
            data[int(rng.integers(4, min(len(data), 200 * turn)))] ^= int(rng.integers(1, 256))
        else:
            del data[int(rng.integers(len(data))) :]
        path = store('a.png', bytes(data))
        for read in (read_image, read_label_map, image_size, label_colors):
            try:
                read(path)
            except DataError:
                rejected += 1
    assert rejected


def test_a_name_that_no_file_can_have_begins_like_nothing(tmp_path):
    assert not begins_like_image(tmp_path / 'a\0b.png')
