"""Mutated annotations: COCO, YOLO, PASCAL VOC, CSV; and COCO results."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tests.fuzz.family import Family, attempt, pixels
from tests.fuzz.mutate import mutate_json, mutate_text

CLASSES = ['cat', 'dog']
PACKED = 'j0b060000000000000000000000000000000000000V8'  # 18 x 20 pixels in an image of 24 x 32


def coco_content() -> dict[str, Any]:
    """Return a COCO file of three images with boxes, polygons, run lengths and a crowd."""
    images = [dict(id=k, file_name=f'{k}.png', width=32, height=24) for k in (1, 2, 3)]
    ring = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]
    runs = dict(size=[24, 32], counts=[100, 50, 618])
    packed = dict(size=[24, 32], counts=PACKED)
    objects = [
        dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 10, 10], area=100, iscrowd=0, segmentation=ring),
        dict(id=2, image_id=1, category_id=2, bbox=[0, 0, 30, 20], area=600, iscrowd=1, segmentation=runs),
        dict(id=3, image_id=2, category_id=2, bbox=[1, 1, 20, 20], area=400, iscrowd=0, segmentation=packed),
        dict(id=4, image_id=2, category_id=1, bbox=[4.5, 3, 8, 9], area=72, iscrowd=0, segmentation=ring, score=0.5),
    ]
    names = [dict(id=k, name=name, supercategory='x') for k, name in enumerate(CLASSES, start=1)]
    return dict(info={}, images=images, annotations=objects, categories=names)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in (1, 2, 3):
        Image.fromarray(pixels()).save(folder / f'{k}.png')


def read_boxes(data: str, images: str, root: Path, split: str | None = None) -> None:
    """Read boxes and masks as training and evaluation do, and as `check_data` does."""
    from tools import check_data
    from vitdense.data.coco.dataset import CocoDetection
    from vitdense.data.formats.labelled_folder import read_folder

    def items(**options: Any) -> None:
        dataset = CocoDetection(data, images, root=root, split=split, cache=False, **options)
        for index in range(len(dataset)):
            dataset[index]
        dataset.check()
        dataset.missing()
        dataset.object_counts(of_one_class=True)
        dataset.extent()

    attempt(
        items,
        lambda: items(evaluation=True, masks=True, skip_unmasked=True),
        lambda: items(masks=True, drop_empty=True, check_sizes=False),
        lambda: check_data.main([str(root / data), str(root / images)]),
        lambda: read_folder(root),
    )


class Coco(Family):
    """COCO annotation files, and COCO result files."""

    def prepare(self) -> None:
        write_images(self.folder / 'images')
        self.content = coco_content()
        self.results = [
            dict(image_id=1, category_id=1, bbox=[2, 2, 10, 10], score=0.9),
            dict(image_id=2, category_id=2, bbox=[1, 1, 20, 20], score=0.8)
            | dict(segmentation=dict(size=[24, 32], counts=PACKED)),
        ]
        self.read(json.dumps(self.content).encode())
        self.score(json.dumps(self.content).encode(), json.dumps(self.results).encode(), 'segm')

    def run(self, random: Random) -> None:
        content, results = json.dumps(self.content).encode(), json.dumps(self.results).encode()
        part = random.randrange(4)
        if part < 2:
            self.read(mutate_json(self.content, random))
        elif part == 2:
            self.score(mutate_json(self.content, random), results, random.choice(('bbox', 'segm')))
        else:
            self.score(content, mutate_json(self.results, random), random.choice(('bbox', 'segm')))

    def read(self, data: bytes) -> None:
        (self.folder / 'a.json').write_bytes(data)
        read_boxes('a.json', 'images', self.folder)

    def score(self, content: bytes, results: bytes, kind: str) -> None:
        from tools import evaluate

        files = self.folder / 'gt.json', self.folder / 'results.json'
        for path, data in zip(files, (content, results), strict=True):
            path.write_bytes(data)
        out = ['--work-dir', str(self.folder / 'work')]
        evaluate.main(['coco', *map(str, files), '--iou-type', kind, *out])


class Yolo(Family):
    """YOLO's data.yaml and label files."""

    yaml = 'names: {0: cat, 1: dog}\ntrain: images\nval: images\npath: .\nx: 0\n'
    labels = '0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.5 0.9\n1 0.2 0.3 0.2 0.2\n'

    def prepare(self) -> None:
        write_images(self.folder / 'images')
        (self.folder / 'labels').mkdir()
        self.warm(self.yaml.encode(), self.labels.encode())

    def run(self, random: Random) -> None:
        code = f'names: !!python/object/apply:os.system ["touch {self.marker}"]\n'
        yaml = random.choice((self.yaml, self.yaml, code + self.yaml))
        which = random.randrange(3)
        self.read(
            mutate_text(yaml, random) if which else yaml.encode(),
            mutate_text(self.labels, random) if which != 1 else self.labels.encode(),
        )

    def read(self, yaml: bytes, labels: bytes) -> None:
        (self.folder / 'data.yaml').write_bytes(yaml)
        (self.folder / 'labels' / '1.txt').write_bytes(labels)
        read_boxes('data.yaml', '', self.folder, split='val')


class Voc(Family):
    """PASCAL VOC's XML files and lists."""

    xml = (
        '<annotation>\n<filename>1.png</filename>\n<size><width>32</width><height>24</height><depth>3</depth></size>\n'
        '<object>\n<name>cat</name>\n<difficult>0</difficult>\n<bndbox><xmin>2</xmin><ymin>3</ymin>\n'
        '<xmax>20</xmax><ymax>19.5</ymax></bndbox>\n</object>\n<object><name>dog</name>\n'
        '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>32</xmax><ymax>24</ymax></bndbox></object>\n</annotation>\n'
    )
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>\n'

    def prepare(self) -> None:
        write_images(self.folder / 'JPEGImages')
        for name in ('Annotations', 'ImageSets/Main'):
            (self.folder / name).mkdir(parents=True)
        (self.folder / 'Annotations' / '2.xml').write_text(self.xml.replace('1.png', '2.png'))
        self.warm(self.xml.encode(), b'1\n2\n')

    def run(self, random: Random) -> None:
        xml = random.choice((self.xml, self.xml, self.bomb + self.xml))
        names = mutate_text('1\n2\n', random) if random.random() < 0.2 else b'1\n2\n'
        self.read(mutate_text(xml, random), names)

    def read(self, xml: bytes, names: bytes) -> None:
        (self.folder / 'Annotations' / '1.xml').write_bytes(xml)
        (self.folder / 'ImageSets' / 'Main' / 'train.txt').write_bytes(names)
        read_boxes('Annotations', 'JPEGImages', self.folder, split='train')


class Csv(Family):
    """CSV files of boxes."""

    csv = (
        'filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,32,24,cat,2,2,12,12\n1.png,32,24,dog,0,0,30,20\n'
        '2.png,32,24,cat,1,1,20,20.5\n3.png,32,24,,,,,\n'
    )

    def prepare(self) -> None:
        write_images(self.folder / 'images')
        self.warm(self.csv.encode())

    def run(self, random: Random) -> None:
        self.read(mutate_text(self.csv, random))

    def read(self, data: bytes) -> None:
        (self.folder / 'train.csv').write_bytes(data)
        read_boxes('train.csv', 'images', self.folder)
