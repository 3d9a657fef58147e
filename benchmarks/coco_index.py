"""P11: opening the annotations of a training set of COCO's size, against pycocotools' index.

    python benchmarks/coco_index.py [--rounds 7] [--images 118287] [--boxes 860000] [--polygons]

The file is drawn: boxes, areas and, with --polygons, an outline for each object (about COCO's 450 MB). `warm open` is
`CocoDetection(...)`, with the file in its cache and all of its checks, against `COCO(file)`. `growth` is the private
memory that a forked worker gains by reading every annotation once, as a loader does in an epoch: pycocotools'
Python objects are copied page by page as their reference counts change. What was read is compared before anything is
timed. Bars: >= 50x, <= 5 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from paired import paired  # noqa: E402

from vitdense.data.coco.arrays import CocoArrays  # noqa: E402
from vitdense.data.coco.cache import SETTLED, open_coco  # noqa: E402
from vitdense.data.coco.dataset import CocoDetection  # noqa: E402

MIB = 2**20


def write_file(path: Path, num_images: int, boxes: int, polygons: bool) -> None:
    """Write an annotation file like instances_train2017.json."""
    rng = np.random.default_rng(0)
    sides = rng.gamma(2, 50, (boxes, 2)).clip(4, 300)
    corners = rng.uniform(0, 1, (boxes, 2)) * ([640, 480] - sides.clip(max=470))
    columns = np.concatenate([corners, sides], 1).round(2).tolist()
    image, category = np.sort(rng.integers(0, num_images, boxes)).tolist(), rng.integers(1, 81, boxes).tolist()
    outline = (np.stack([np.cos(t := np.linspace(0, 6.2, 24)), np.sin(t)], 1) / 2 + 0.5).reshape(-1)
    with open(path, 'w') as file:
        images = [dict(id=k, file_name=f'{k:012d}.jpg', width=640, height=480) for k in range(num_images)]
        categories = [dict(id=k, name=f'class {k}') for k in range(1, 81)]
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for row, (x, y, w, h) in enumerate(columns):
            record = dict(id=row + 1, image_id=image[row], category_id=category[row], iscrowd=0)
            record |= dict(bbox=[x, y, w, h], area=round(w * h * 0.7, 4))
            if polygons:
                record['segmentation'] = [(outline * np.tile([w, h], 24) + np.tile([x, y], 24)).round(2).tolist()]
            file.write((', ' if row else '') + json.dumps(record))
        file.write(']}')


def by_pycocotools(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def private_memory() -> int:
    """Bytes that this process has written to and does not share (pages of a mapped file are shared)."""
    rows = Path('/proc/self/smaps_rollup').read_text().splitlines()
    return sum(1024 * int(row.split()[1]) for row in rows if row.startswith('Private_Dirty'))


def growth_in_a_fork(read_all: Callable[[], float]) -> tuple[float, float]:
    """Return the MiB that a forked child gains by `read_all`, and what that returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = private_memory()
        output = read_all()
        os.write(writer, f'{(private_memory() - before) / MIB} {output}'.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return tuple(float(word) for word in os.read(reader, 200).split())


def sum_of_arrays(arrays: CocoArrays) -> float:
    """Read every annotation, image by image."""
    total = 0.0
    for row in range(len(arrays.sizes)):
        mine = slice(arrays.starts[row], arrays.starts[row + 1])
        total += float(arrays.boxes[mine].sum() + arrays.labels[mine].sum() + arrays.crowd[mine].sum())
    return total


def sum_of_index(known: COCO) -> float:
    total = 0.0
    for number in known.imgs:
        for record in known.imgToAnns[number]:
            total += sum(record['bbox']) + record['category_id'] - 1 + record['iscrowd']
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--images', type=int, default=118_287)
    parser.add_argument('--boxes', type=int, default=860_000)
    parser.add_argument('--polygons', action='store_true', help='with segmentations, which both keep')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'instances.json'
        write_file(path, options.images, options.boxes, options.polygons)
        time.sleep(SETTLED / 1e9 + 0.1)  # a file that has just changed would be compared by content
        start = time.perf_counter()
        arrays, _ = open_coco(path, masks=options.polygons, cache=folder)
        cold = time.perf_counter() - start
        os.sync()  # pages of a file that is still being written to disk would count as the reader's own
        ours, total = growth_in_a_fork(lambda: sum_of_arrays(arrays))
        theirs, expected = growth_in_a_fork(partial(sum_of_index, by_pycocotools(path)))
        assert abs(total - expected) < 1e-6 * expected
        print(f'{path.stat().st_size / 1e6:.0f} MB, {options.boxes} boxes; first open, cache written: {cold:.1f} s')
        print(f'growth of a forked worker: pycocotools {theirs:.0f} MiB, ours {ours:.1f} MiB', flush=True)

        def warm() -> CocoDetection:
            return CocoDetection(path, folder, masks=options.polygons, cache=folder)

        print(f'warm open: {paired(lambda: by_pycocotools(path), warm, options.rounds, warmup=0)}')


if __name__ == '__main__':
    main()
