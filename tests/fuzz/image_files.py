"""Mutated images, label maps, and lists of files and classes."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.annotations import CLASSES, write_images
from tests.fuzz.family import Family, attempt, encoded, pixels
from tests.fuzz.mutate import mutate_bytes, mutate_text, mutate_value


def whole_images() -> dict[str, bytes]:
    """Return small image files of every format and mode, by name."""
    color = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {'exif.jpg': encoded(color, 'JPEG', exif=exif), 'progressive.jpg': encoded(color, 'JPEG', progressive=True)}
    files['cmyk.jpg'] = encoded(color.convert('CMYK'), 'JPEG')
    for mode in ('RGB', 'RGBA', 'P', 'L', 'LA', '1', 'I;16'):
        image = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257) if mode == 'I;16' else color.convert(mode)
        files[f'{mode.replace(";", "")}.png'] = encoded(image, 'PNG')
    for mode, options in (
        ('RGB', {}), ('RGB', {'compression': 'tiff_lzw'}), ('L', {'compression': 'tiff_adobe_deflate'}), ('F', {})
    ):  # fmt: skip
        files[f'{mode}{"".join(options.values())}.tif'] = encoded(color.convert(mode), 'TIFF', **options)
    for kind, suffix in (('BMP', 'bmp'), ('GIF', 'gif'), ('WEBP', 'webp'), ('PPM', 'ppm'), ('JPEG2000', 'jp2')):
        files[f'a.{suffix}'] = encoded(color, kind)
    if 'AVIF' in Image.SAVE:
        files['a.avif'] = encoded(color, 'AVIF')
    return files


class Images(Family):
    """Image files, by the functions that read all images and label maps, and `check_data`."""

    def prepare(self) -> None:
        self.files = whole_images()
        self.warm('RGB.png', self.files['RGB.png'], whole=True)

    def run(self, random: Random) -> None:
        name = random.choice(list(self.files))
        data = mutate_bytes(self.files[name], random, tuple(self.files.values()))
        self.read(random.choice((name, name, 'a.png', 'a.jpg')), data, whole=random.random() < 0.02)

    def read(self, name: str, data: bytes, *, whole: bool) -> None:
        from tools import check_data
        from vitdense.data.files import images

        folder = self.folder / 'images' / 'a'
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(data)
        try:
            attempt(
                lambda: images.read_image(path),
                lambda: images.read_image(path, value_range=(0, 4095)),
                lambda: images.image_size(path),
                lambda: images.read_header(path),
                lambda: images.read_label_map(path),
                lambda: images.label_colors(path),
                *([lambda: check_data.main([str(folder.parent)])] if whole else []),
            )
        finally:
            path.unlink()


class LabelMaps(Family):
    """Label maps, files of class names, tables of numbers, and lists of a split."""

    def prepare(self) -> None:
        write_images(self.folder / 'images')
        write_images(self.folder / 'masks')
        numbers = np.arange(24 * 32).reshape(24, 32) % 3
        palette = Image.fromarray(numbers.astype(np.uint8), 'P')
        palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        self.maps = [
            encoded(Image.fromarray(numbers.astype(np.uint8)), 'PNG'),
            encoded(Image.fromarray(numbers.astype(np.uint16)), 'PNG'),
            encoded(palette, 'PNG'),
            encoded(Image.fromarray(np.repeat(numbers[..., None], 3, 2).astype(np.uint8) * 100), 'PNG'),
            encoded(Image.fromarray(numbers.astype(np.uint8) > 0), 'PNG'),
        ]
        for k in (1, 2, 3):
            (self.folder / 'masks' / f'{k}.png').write_bytes(self.maps[0])
        self.read(self.maps[0], b'a\nb\nc\n', {}, b'1\n2\n', None)

    def run(self, random: Random) -> None:
        labels, table, options = random.choice(self.maps), {'0': 0, '1': 1, '2': 2, '3': None}, {}
        names, split = b'a\nb\nc\n', None
        for part in random.sample(range(4), random.choice((1, 1, 2))):
            if part == 0:
                labels = mutate_bytes(labels, random, tuple(self.maps))
            elif part == 1:
                names = mutate_text(random.choice(('a\nb\nc\n', '0: a\n1: b\n2: c\n')), random)
            elif part == 2:
                split = mutate_text('1.png\n2\n3.png\n', random)
            else:
                palette = [[0, 0, 0], [9, 9, 9], [1, 2, 3]]
                options = dict(label_map=table, ignore=[255], reduce_zero_label=False, palette=palette)
                options = mutate_value(options, random)
        suffix = random.choice(('.txt', '.yaml', '.json'))
        options = options if isinstance(options, dict) else {}
        self.read(labels, names, options, split, suffix)

    def read(self, labels: bytes, names: bytes, options: dict, split: bytes | None, suffix: str | None) -> None:
        from tools import check_data
        from vitdense.data.formats.labelled_folder import read_folder
        from vitdense.data.segmentation import SegmentationDataset
        from vitdense.registry import build

        (self.folder / 'masks' / '2.png').write_bytes(labels)
        classes = self.folder / f'classes{suffix or ".txt"}'
        classes.write_bytes(names)
        if split is not None:
            (self.folder / 'split.txt').write_bytes(split)
            options = {**options, 'split': 'split.txt'}
        recipe = dict(type=SegmentationDataset, images='images', labels='masks', root=self.folder, classes=classes.name)

        def items() -> None:
            dataset = build({**recipe, **options})
            dataset.check()
            for index in range(len(dataset)):
                dataset[index]

        folders = [str(self.folder / name) for name in ('masks', 'images')]
        try:
            attempt(
                items, lambda: check_data.main([*folders, '--classes', str(classes)]), lambda: read_folder(self.folder)
            )
        finally:
            classes.unlink()


class ClassLists(Family):
    """Lists of images and their classes, and WordNet files."""

    def prepare(self) -> None:
        for name in CLASSES:
            write_images(self.folder / 'images' / name)
        self.read(b'cat/1.png\tcat\ndog/2.png dog\n', b'cat\ndog\n', {})

    def run(self, random: Random) -> None:
        lists = 'cat/1.png\tcat\ndog/2.png dog\ncat/3.png\ndog/1.png 1\n'
        names = random.choice(('cat\ndog\n', 'n02123045 cat, tabby\nn02084071 dog\n'))
        options = random.choice(({}, {'multi_label': True}, {'wordnet': 'names.txt'}, {'part': (0, 0.5)}))
        if random.random() < 0.3:
            options = {'part': mutate_value([0, 0.5], random)}
        self.read(
            mutate_text(lists, random), mutate_text(names, random) if random.random() < 0.5 else names.encode(), options
        )

    def read(self, lists: bytes, names: bytes, options: dict) -> None:
        from vitdense.data.classification import ClassificationDataset
        from vitdense.registry import build

        (self.folder / 'list.txt').write_bytes(lists)
        (self.folder / 'names.txt').write_bytes(names)
        recipe = dict(
            type=ClassificationDataset, folder='images', root=self.folder, split='list.txt', classes='names.txt'
        )

        def items() -> None:
            dataset = build({**recipe, **options})
            dataset.check(training=True)
            dataset.missing()
            for index in range(len(dataset)):
                dataset[index]

        attempt(items)


class Shards(Family):
    """Shards and their index."""

    def prepare(self) -> None:
        from vitdense.data.shards.write import ShardMember, write_shards

        image = encoded(Image.fromarray(pixels()), 'PNG')
        names = [f'{name}/{k}' for name in CLASSES for k in '12']
        samples = [[ShardMember(f'{name}.png', image), ShardMember(f'{name}.cls', b'0')] for name in names]
        write_shards(self.folder / 'whole', samples, max_bytes=8000)
        self.files = {path.name: path.read_bytes() for path in (self.folder / 'whole').iterdir()}
        self.read('', b'')

    def run(self, random: Random) -> None:
        name = random.choice(list(self.files) + ['index.safetensors'])
        self.read(name, mutate_bytes(self.files[name], random, tuple(self.files.values())), again=random.random() < 0.5)

    def read(self, name: str, data: bytes, *, again: bool = False) -> None:
        from vitdense.data.classification import ClassificationDataset
        from vitdense.data.shards.index import scan_shards, write_index

        folder = self.folder / 'shards'
        folder.mkdir(exist_ok=True)
        for other, content in (self.files | ({name: data} if name else {})).items():
            (folder / other).write_bytes(content)

        def items() -> None:
            dataset = ClassificationDataset('', root=folder)
            dataset.missing()
            for index in range(len(dataset)):
                dataset[index]

        attempt(items, *([lambda: write_index(folder, scan_shards(folder)), items] if again else []))
