"""Data sets with some of the classes of CamVid and BCCD at half size, for `Old classes kept` in docs/results.md.

    python benchmarks/class_subsets.py DATA OUT

Writes OUT/camvid_old (7 classes), camvid_new (car, pedestrian, bicyclist, signsymbol; everything else is unlabelled)
and camvid_all (11), label maps of 240 x 180, and OUT/bccd_old (RBC, WBC), bccd_new (Platelets) and bccd_all (3), images
of 320 x 240 with COCO files. DATA is a folder with `camvid/` and `bccd/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

CAMVID_NEW = ('signsymbol', 'car', 'pedestrian', 'bicyclist')
BCCD = {'bccd_old': ('RBC', 'WBC'), 'bccd_new': ('Platelets',), 'bccd_all': ('Platelets', 'RBC', 'WBC')}
MIN_PIXELS = 20  # a training image of new classes shows at least as many of their pixels
UNLABELLED = 255


def write_camvid(source: Path, target: Path, classes: list[str], kept: list[str], *, min_pixels: int) -> None:
    """Write the images and label maps of both splits, with the classes `kept` in their order."""
    table = np.full(256, UNLABELLED, np.uint8)
    table[[classes.index(name) for name in kept]] = range(len(kept))
    for split, folder, least in (('training', 'train', min_pixels), ('validation', 'val', 0)):
        for kind in ('images', 'masks'):
            (target / kind / folder).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / 'images' / split).iterdir()):
            labels = table[cv2.imread(str(source / 'annotations' / split / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)]
            labels = cv2.resize(labels, (240, 180), interpolation=cv2.INTER_NEAREST)
            if (labels != UNLABELLED).sum() >= least:
                image = cv2.resize(cv2.imread(str(path)), (240, 180), interpolation=cv2.INTER_AREA)
                cv2.imwrite(str(target / 'images' / folder / f'{path.stem}.png'), image)
                cv2.imwrite(str(target / 'masks' / folder / f'{path.stem}.png'), labels)
    (target / 'classes.txt').write_text('\n'.join(kept) + '\n')


def write_bccd(source: Path, target: Path, kept: tuple[str, ...]) -> None:
    """Write the images of both splits at half size, and their COCO files with the classes `kept`."""
    (target / 'annotations').mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val'):
        content = json.loads((source / f'annotations/instances_{split}.json').read_text())
        content['categories'] = [each for each in content['categories'] if each['name'] in kept]
        ids = {each['id'] for each in content['categories']}
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] in ids]
        for each in content['annotations']:
            each.update(bbox=[value / 2 for value in each['bbox']], area=each['area'] / 4)
            each.pop('segmentation', None)
        (target / split).mkdir(exist_ok=True)
        for each in content['images']:
            each.update(width=320, height=240)
            image = cv2.imread(str(source / split / each['file_name']))
            cv2.imwrite(
                str(target / split / each['file_name']), cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA)
            )
        (target / f'annotations/{split}.json').write_text(json.dumps(content))


def main() -> None:
    """Write all six."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    camvid = args.data / 'camvid'
    classes = (camvid / 'classes.txt').read_text().split()
    old = [name for name in classes if name not in CAMVID_NEW]
    new = [name for name in classes if name in CAMVID_NEW]
    write_camvid(camvid, args.out / 'camvid_old', classes, old, min_pixels=0)
    write_camvid(camvid, args.out / 'camvid_new', classes, new, min_pixels=MIN_PIXELS)
    write_camvid(camvid, args.out / 'camvid_all', classes, classes, min_pixels=0)
    for name, kept in BCCD.items():
        write_bccd(args.data / 'bccd', args.out / name, kept)


if __name__ == '__main__':
    main()
