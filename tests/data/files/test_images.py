"""Every row of the table of decoders: what each kind of file gives, and what is refused by name."""

import hashlib
import io
import resource
import struct
import warnings

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageFile

from tests.data.files.encoded_images import encoded, hollow_png
from vitdense.data.files import images
from vitdense.data.files.images import UnreadableImage, from_pil, image_size, read_image, read_label_map
from vitdense.errors import DataError

SIZE = (60, 100)


def smooth_image(size=SIZE) -> np.ndarray:
    """A gradient with different channels, smooth enough for JPEG."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    planar_channels = [
        rows * 255 / (size[0] - 1),
        columns * 255 / (size[1] - 1),
        (rows + columns) * 255 / (sum(size) - 2),
    ]
    return np.stack(planar_channels, -1).astype(np.uint8)


@pytest.fixture
def store(tmp_path):
    def write(name: str, data: bytes):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


RGB = Image.fromarray(smooth_image())
JPEG = encoded(RGB, 'JPEG', quality=95)
PNG = encoded(RGB, 'PNG')


@pytest.mark.parametrize(
    ('name', 'data', 'words'),
    [
        ('cut.jpg', JPEG[: len(JPEG) * 6 // 10], 'truncated'),
        ('no_end.jpg', JPEG[:-2], 'truncated'),
        ('cut.png', PNG[: len(PNG) * 6 // 10], 'truncated'),
        ('hollow.png', hollow_png(12000, 9000), 'truncated'),
        ('bomb.png', hollow_png(60000, 60000), '3600.0 Mpx > limit 180'),
        ('empty.jpg', b'', 'empty'),
        ('page.jpg', b'<!DOCTYPE html><html><body>404</body></html>', 'not an image'),
        ('float.tif', encoded(Image.fromarray(np.ones(SIZE, np.float32)), 'TIFF'), 'float pixels'),
        ('int.tif', encoded(Image.fromarray(np.ones(SIZE, np.int32)), 'TIFF'), '32-bit pixels'),
    ],
)
def test_unusable_files_are_refused_by_name(store, name, data, words):
    path = store(name, data)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # no bomb warning either
        with pytest.raises(UnreadableImage) as caught:
            read_image(path)
    assert name in caught.value.message and words in str(caught.value)
    assert caught.value.where == str(path) and caught.value.fix
    assert isinstance(caught.value, DataError)


def test_a_bomb_is_refused_where_there_is_no_memory_for_it(store):
    path = store('bomb.png', hollow_png(60000, 60000))
    limits, used = resource.getrlimit(resource.RLIMIT_AS), psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))  # its pixels would take 10 GB
    try:
        with pytest.raises(UnreadableImage, match=r'3600\.0 Mpx'):
            read_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize('lost', [2, len(JPEG) * 4 // 10])
def test_a_cut_jpeg_is_refused_whatever_opencv_makes_of_it(store, monkeypatch, lost):
    monkeypatch.setattr(images, '_decode_with_opencv', lambda data, flags: np.zeros((*SIZE, 3), np.uint8))  # OpenCV 4
    assert not read_image(store('whole.jpg', JPEG)).any()
    with pytest.raises(UnreadableImage, match='truncated'):
        read_image(store('cut.jpg', JPEG[:-lost]))


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    for path in (tmp_path / 'nothing.jpg', tmp_path):
        with pytest.raises(UnreadableImage, match='cannot be read'):
            read_image(path)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'LA', 'P', 'RGBA', '1', 'CMYK'])
def test_every_mode_becomes_rgb(store, mode):
    kind = 'TIFF' if mode == 'CMYK' else 'PNG'
    image = RGB.convert(mode)
    img = read_image(store(f'{mode}.{kind.lower()}', encoded(image, kind)))
    assert img.shape == (3, *SIZE) and img.dtype == torch.uint8
    assert img.permute(1, 2, 0).numpy().tolist() == np.asarray(image.convert('RGB')).tolist()


@pytest.mark.parametrize('kind', ['BMP', 'WEBP', 'GIF', 'AVIF', 'TIFF'])
def test_every_format_reads(store, kind):
    if kind == 'AVIF' and 'AVIF' not in (Image.init() or Image.SAVE):
        pytest.skip('this Pillow has no AVIF')
    frames = {'save_all': True, 'append_images': [Image.new('RGB', SIZE[::-1])]} if kind == 'GIF' else {}
    img = read_image(store(f'a.{kind.lower()}', encoded(RGB, kind, **frames)))
    assert img.shape == (3, *SIZE)
    assert (img.float() - torch.from_numpy(smooth_image()).permute(2, 0, 1)).abs().mean() < 12


def test_alpha_is_dropped_not_composited(store):
    clear = Image.fromarray(np.dstack([smooth_image(), np.zeros(SIZE, np.uint8)]))
    assert (read_image(store('clear.png', encoded(clear, 'PNG'))) == from_pil(RGB)).all()
    palette = RGB.convert('P')
    palette.info['transparency'] = bytes(range(256))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        img = read_image(store('palette.png', encoded(palette, 'PNG')))
    assert (img == from_pil(RGB.convert('P'))).all()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bits_keep_their_brightness(store, kind):
    levels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
    img = read_image(store(f'u16.{kind.lower()}', encoded(Image.fromarray(levels), kind)))
    assert abs(img.float().mean() - 127.5) < 1
    assert img.min() == 0 and img.max() == 255 and (img[0] == img[2]).all()


def test_numbers_without_meaning_need_a_range(store):
    twelve = (np.linspace(0, 4095, SIZE[0] * SIZE[1])).astype(np.uint16).reshape(SIZE)
    path = store('u12.png', encoded(Image.fromarray(twelve), 'PNG'))
    assert abs(read_image(path, value_range=(0, 4095)).float().mean() - 127.5) < 1
    floats = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32))
    img = read_image(store('float.tif', encoded(floats, 'TIFF')), value_range=(-1, 1))
    assert img[0].tolist() == [[0, 128, 255, 0]]


def test_eight_orientations_are_one_image(store):
    """Stored turned and flagged, all eight come out upright; PNG exactly, JPEG within its own loss."""
    upright = smooth_image()
    upright[5:15, 10:30] = (255, 0, 0)  # the red corner
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    for flag, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = flag
        stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
        for kind in ('PNG', 'TIFF', 'WEBP', 'JPEG'):
            options = {'lossless': True} if kind == 'WEBP' else {'quality': 100, 'subsampling': 0}
            path = store(f'{flag}.{kind.lower()}', encoded(stored, kind, exif=exif, **options))
            img = read_image(path).permute(1, 2, 0).numpy()
            assert image_size(path) == SIZE and img.shape == upright.shape
            difference = np.abs(img.astype(int) - upright)
            assert difference.max() == 0 if kind != 'JPEG' else difference.mean() < 2


def test_damaged_exif_is_no_reason_to_lose_a_image(store):
    broken = JPEG[:2] + b'\xff\xe1' + struct.pack('>H', 20) + b'Exif\0\0' + b'\x01' * 12 + JPEG[2:]
    assert (read_image(store('exif.jpg', broken)) == from_pil(Image.open(io.BytesIO(JPEG)))).all()


def test_the_fast_route_gives_pillows_pixels(store, monkeypatch):
    """Gray and RGB, all chroma samplings; and only plain baseline files take it."""
    fast = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *a: fast.append(1) or decode(*a))
    for subsampling in (0, 1, 2):
        data = encoded(RGB, 'JPEG', quality=80, subsampling=subsampling)
        assert (read_image(store('a.jpg', data)) == from_pil(Image.open(io.BytesIO(data)))).all()
    gray = encoded(RGB.convert('L'), 'JPEG')
    assert (read_image(store('gray.jpg', gray)) == from_pil(Image.open(io.BytesIO(gray)))).all()
    assert len(fast) == 4
    exif = Image.Exif()
    exif[0x0112] = 3
    for data in (
        encoded(RGB, 'JPEG', progressive=True),
        encoded(RGB, 'JPEG', exif=exif),
        encoded(RGB.convert('CMYK'), 'JPEG'),
        JPEG + b'tail',
    ):
        assert read_image(store('doubt.jpg', data)).shape == (3, *SIZE)
    assert len(fast) == 4


def test_damaged_files_are_judged_as_pillow_judges_them(store):
    """Random damage inside the data, with the end marker in place: refused by both ways or the same pixels."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (60, 80, 3), np.uint8)
    whole = encoded(Image.fromarray(texture), 'JPEG', quality=80)
    rejected = 0
    for turn in range(120):
        data = bytearray(whole)
        location = int(rng.integers(len(data) // 3, len(data) - 4))
        data[location : location + 2] = (0xFF, turn + 100) if turn % 2 else (turn, 2 * turn)
        try:
            expected = from_pil(Image.open(io.BytesIO(data)))
        except UnreadableImage:
            rejected += 1
            with pytest.raises(UnreadableImage):
                read_image(store('damaged.jpg', bytes(data)))
        else:
            assert (read_image(store('damaged.jpg', bytes(data))) == expected).all()
    assert 0 < rejected < 120


def test_real_images_decode_alike_both_ways(shared):
    files = sorted((shared / 'camvid/images/training').glob('*.jpg'))[:8]
    files += sorted((shared / 'coco_mini480/train2017').glob('*.jpg'))[:16]
    for path in files:
        with Image.open(path) as image:
            assert (read_image(path) == from_pil(image)).all(), path


def test_pillow_is_left_as_it_was(store, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1234)
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)  # some libraries set it
    read_image(store('good.jpg', JPEG))
    with pytest.raises(UnreadableImage, match='truncated'):
        read_image(store('cut.jpg', JPEG[: len(JPEG) // 2]))
    with pytest.raises(UnreadableImage, match='Mpx'):
        image_size(store('bomb.png', hollow_png(60000, 60000)))
    assert Image.MAX_IMAGE_PIXELS == 1234 and ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_limit_is_the_callers(store):
    with pytest.raises(UnreadableImage, match='limit 0.005'):
        read_image(store('small.png', PNG), max_pixels=5000)


def test_reading_changes_no_file(store):
    path = store('a.jpg', JPEG)
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    read_image(path), image_size(path)
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


def test_label_maps_keep_their_numbers(store):
    labels = np.arange(60 * 100, dtype=np.uint16).reshape(SIZE) % 21
    palette = Image.fromarray(labels.astype(np.uint8))
    palette.putpalette([255 - channel for channel in range(256) for _ in range(3)])
    assert (read_label_map(store('voc.png', encoded(palette, 'PNG'))).numpy() == labels).all()
    gray = Image.fromarray(labels.astype(np.uint8))
    assert read_label_map(store('gray.png', encoded(gray, 'PNG'))).dtype == torch.uint8
    wide = read_label_map(store('wide.png', encoded(Image.fromarray(labels * 1000), 'PNG')))
    assert wide.dtype == torch.int32 and (wide.numpy() == labels * 1000).all()
    bits = read_label_map(store('bits.png', encoded(Image.fromarray(labels > 10), 'PNG')))
    assert bits.dtype == torch.uint8 and bits.unique().tolist() == [0, 1]


def test_colour_labels_need_a_table(store):
    colors = {(0, 0, 0): 255, (128, 0, 0): 0, (0, 128, 64): 1}
    labels = np.random.default_rng(0).integers(0, 3, SIZE)
    path = store('colors.png', encoded(Image.fromarray(np.array(list(colors), np.uint8)[labels]), 'PNG'))
    assert (read_label_map(path, colors=colors).numpy() == np.array(list(colors.values()))[labels]).all()
    with pytest.raises(DataError, match='one number per pixel'):
        read_label_map(path)
    with pytest.raises(DataError, match=r'\(0, 128, 64\)'):
        read_label_map(path, colors={(0, 0, 0): 255, (128, 0, 0): 0})


def test_broken_labels_are_never_taken_for_skippable_images(store):
    for name, data in (('cut.png', PNG[:200]), ('labels.jpg', encoded(RGB.convert('L'), 'JPEG'))):
        with pytest.raises(DataError) as caught:
            read_label_map(store(name, data))
        assert not isinstance(caught.value, UnreadableImage)


def test_the_limit_matches_the_documentation():
    assert images.MAX_PIXELS == 180_000_000
