"""Numbers of unusual bits in image and label files: 2, 4, 10, 12, 14 and 16 of them."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vitdense.data.classification import ClassificationDataset
from vitdense.data.files.image_check import dark_range
from vitdense.data.files.images import read_header, read_image, read_label_map, read_levels
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import ConfigError, DataError


def packed(numbers: np.ndarray, bits: int) -> bytes:
    """Rows of (H, W) numbers with `bits` each, most significant first, every row filled up to whole bytes."""
    unpacked = (numbers[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    return np.packbits(unpacked.reshape(len(numbers), -1), axis=1)


def png(numbers: np.ndarray, bits: int, *, palette: list[int] | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = np.pad(packed(numbers, bits), ((0, 0), (1, 0)))  # no filter
    header = struct.pack('>IIBBBBB', numbers.shape[1], len(numbers), bits, 0 if palette is None else 3, 0, 0, 0)
    colors = b'' if palette is None else chunk(b'PLTE', bytes(palette))
    body = chunk(b'IDAT', zlib.compress(rows.tobytes())) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + colors + body


def tiff(numbers: np.ndarray, bits: int) -> bytes:
    data, start = packed(numbers, bits).tobytes(), 8 + 2 + 9 * 12 + 4
    values = {256: numbers.shape[1], 257: len(numbers), 258: bits, 259: 1, 262: 1, 273: start, 277: 1, 278: 2**20}
    tags = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in (values | {279: len(data)}).items())
    return b'II*\0' + struct.pack('<IH', 8, 9) + tags + bytes(4) + data


def pgm(numbers: np.ndarray, largest: int, *, plain: bool = False) -> bytes:
    head = f'{"P2" if plain else "P5"}\n{numbers.shape[1]} {len(numbers)}\n{largest}\n'.encode()
    if plain:
        return head + ' '.join(map(str, numbers.ravel().tolist())).encode()
    return head + numbers.astype('>u2' if largest > 255 else 'u1').tobytes()


def all_numbers(bits: int) -> np.ndarray:
    return np.resize(np.arange(2**bits), (6, 2 ** max(bits - 2, 3) + 1))  # an odd width: rows end within a byte


@pytest.fixture
def store(tmp_path):
    def write(name: str, data: bytes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_label_maps_hold_the_numbers_of_the_file(store, bits):
    numbers = all_numbers(bits)
    gray = [channel for level in range(2**bits) for channel in [level * 255 // (2**bits - 1)] * 3]
    files = [('a.png', png(numbers, bits)), ('b.png', png(numbers, bits, palette=gray)), ('a.tif', tiff(numbers, bits))]
    for name, data in files:
        assert (read_label_map(store(name, data)).numpy() == numbers).all(), name


@pytest.mark.parametrize('largest', [1, 3, 15, 100, 254, 255, 256, 4095, 65534, 65535])
@pytest.mark.parametrize('plain', [False, True])
def test_a_pgm_label_map_holds_its_numbers_whatever_its_largest(store, largest, plain):
    numbers = np.random.default_rng(largest).integers(0, largest + 1, (7, 9))
    path = store('a.pgm', pgm(numbers, largest, plain=plain))
    assert (read_label_map(path).numpy() == numbers).all()
    assert np.abs(read_image(path)[0].numpy() - numbers / largest * 255).max() <= 0.5
    assert (read_image(path, value_range=(0, largest)).int() - read_image(path)).abs().max() <= 1


@pytest.mark.parametrize('bits', [2, 4])
def test_a_largest_class_of_few_bits_is_not_ignored(store, bits):
    """3 of 2 bits and 15 of 4 are 255 for Pillow."""
    top = 2**bits - 1
    store('m/a.png', png(np.resize([0, top], (4, 4)), bits))
    Image.new('RGB', (4, 4)).save(store('i/a.png', b''))
    data = SegmentationDataset('i', 'm', root=store('x', b'').parent, classes=[f'c{k}' for k in range(16)])
    data.check()
    assert data[0].target.semantic.unique().tolist() == [0, top]


def test_twelve_bits_packed_in_a_tiff_have_a_known_range(store):
    numbers = np.linspace(0, 4095, 64 * 6).astype(int).reshape(6, 64)
    path = store('a.tif', tiff(numbers, 12))
    assert np.abs(read_image(path)[0].numpy() - numbers / 4095 * 255).max() <= 0.5 and read_header(path).bits == 12


@pytest.mark.parametrize(('kind', 'bands'), [('.png', 3), ('.png', 4), ('.tiff', 3), ('.tiff', 4)])
def test_a_range_reaches_all_bits_of_colour_images(store, kind, bands):
    numbers = np.random.default_rng(0).integers(0, 4096, (12, 9, bands)).astype(np.uint16)
    path = store('a' + kind, cv2.imencode(kind, numbers)[1].tobytes())
    expected = (numbers[..., 2::-1] / 4095 * 255 + 0.5).astype(np.uint8)
    assert (read_image(path, value_range=(0, 4095)).permute(1, 2, 0).numpy() == expected).all()
    assert read_levels(path).brightest == 4095 and read_levels(path, value_range=(0, 4095)).brightest is None


def test_a_range_beyond_eight_bits_leaves_images_of_eight_bits_alone(store):
    path = store('a.png', b'')
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    assert (read_image(path, value_range=(0, 4095)) == read_image(path)).all()
    assert read_image(path, value_range=(100, 200))[0, 6, 4] == 0  # level 100
    assert read_image(path, value_range=(100, 200))[0, 12, 8] == 255  # level 200


@pytest.mark.parametrize('value', [(0, 0), (4095, 0), (0, float('inf')), (0,), 'ab', 4095, (None, 1)])
def test_a_range_that_is_none_is_a_config_error(store, value):
    Image.new('L', (4, 4)).save(store('c/a.png', b''))
    with pytest.raises(ConfigError, match='value_range'):
        ImageDataset('c', root=store('x', b'').parent, value_range=value)
    with pytest.raises(ConfigError, match='value_range'):
        read_image(store('a.png', b'1'), value_range=value)


def twelve_bit(path, levels=(0, 4095)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.linspace(*levels, 64).astype(np.uint16).reshape(8, 8)).save(path)


def test_every_data_set_takes_a_range_and_warns_without(tmp_path, caplog):
    twelve_bit(tmp_path / 'c/x/black.png', (0, 0))  # says nothing about the others
    (tmp_path / 'm/c/x').mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'm/c/x/black.png')
    for name in ('c/x/a.png', 'c/y/b.png'):
        twelve_bit(tmp_path / name)
        (tmp_path / 'm' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array([0, 1], np.uint8), (8, 8))).save(tmp_path / 'm' / name)
    makers = [
        lambda **options: SegmentationDataset('c', 'm/c', root=tmp_path, classes=['a', 'b'], **options),
        lambda **options: ClassificationDataset('c', root=tmp_path, **options),
        lambda **options: ImageDataset('c', root=tmp_path, **options),
    ]
    for make in makers:
        assert make()[0].img.max() == 16 and make(value_range=[0, 4095])[0].img.max() == 255
        for options in ({}, {'value_range': (0, 4095)}):
            caplog.clear()
            if hasattr(make(), 'check'):
                make(**options).check()
                assert ('12 bits? then value_range=(0, 4095)' in caplog.text) == (not options)


@pytest.mark.parametrize(
    ('brightest', 'words'),
    [([300], '10 bits'), ([1023, 4], '10 bits'), ([2800, 4095], '12 bits'), ([9000], '14 bits'), ([200], '8 bits')],
)
def test_dark_ranges_are_named(brightest, words):
    assert words in dark_range(brightest)


def test_bright_or_black_ranges_are_not():
    assert dark_range([16384]) == dark_range([4095, 65535]) == dark_range([]) == dark_range([0]) == ''


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_equal_channels_are_named(tmp_path, mode):
    numbers = np.resize(np.array([0, 1, 2], np.uint8), (8, 9))
    Image.fromarray(numbers).convert(mode).save(tmp_path / 'a.png')
    with pytest.raises(DataError, match='all equal') as caught:
        read_label_map(tmp_path / 'a.png')
    assert 'one channel' in caught.value.fix
    with pytest.raises(DataError, match=r'a\.png: a label map needs one number per pixel, this image'):
        Image.fromarray(np.dstack([numbers, numbers, numbers + 1])).save(tmp_path / 'a.png')
        read_label_map(tmp_path / 'a.png')
