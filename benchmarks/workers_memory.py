"""Memory of loader workers and start-up time for data sets of any length.

    python benchmarks/workers_memory.py list [--count 14000000]
    python benchmarks/workers_memory.py boxes [--count 860000]

`list` is a classification data set of `--count` listed images, `boxes` a COCO file of that many boxes. Loaders with
0, 1, 4 and 8 workers read the index, without images. Memory is the PSS of all processes: what is shared counts once.
The same with 1,000 images first gives what the processes need without data. `growth` is the private memory that a
forked worker gains by reading 200,000 random rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from coco_index import growth_in_a_fork, write_file  # noqa: E402

MIB = 2**20
WORKERS = (0, 1, 4, 8)
CLASSES, ROWS = 1000, 200_000


def write_list(folder: Path, count: int) -> None:
    """Write a list like ImageNet's: real images, each listed many times under names of the usual length."""
    for number in range(CLASSES):
        path = folder / f'n{number:08d}' / f'n{number:08d}_10026.JPEG'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (32, 32), (number % 256, 0, 0)).save(path)
    with open(folder / 'train.txt', 'w') as file:
        for number in np.random.default_rng(0).integers(0, CLASSES, count).tolist():
            file.write(f'n{number:08d}/n{number:08d}_10026.JPEG\tn{number:08d}\n')


def write_boxes(folder: Path, count: int) -> None:
    """Write a COCO file with the boxes; all its images are links to one."""
    num_images = max(count * 118_287 // 860_000, 1)
    write_file(folder / 'a.json', num_images, count, polygons=False)
    (folder / 'images').mkdir()
    Image.new('RGB', (640, 480)).save(folder / 'images' / 'a.png')
    for number in range(num_images):
        os.link(folder / 'images' / 'a.png', folder / 'images' / f'{number:012d}.jpg') if not number % 60_000 else None


def open_data(kind: str, folder: Path):
    from vitdense.data.classification import ClassificationDataset
    from vitdense.data.coco.dataset import CocoDetection

    if kind == 'list':
        return ClassificationDataset('', root=folder, split='train.txt')
    return CocoDetection('a.json', 'images', root=folder, cache=folder)


class Rows:
    """Rows of a data set without their images: what is measured is the memory of the index."""

    def __init__(self, data) -> None:
        self.data, self.metainfo = data, data.metainfo

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        import torch

        from vitdense.types import Meta, Sample, Target

        row = read_row(self.data, index)
        return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), Target(), Meta(str(row), size=(8, 8)))


def read_row(data, index: int) -> float:
    """Read what the data set holds for an image, without the image; return a number that depends on it."""
    if hasattr(data, '_labels'):
        return float(data._labels[index]) + len(data._files[index])
    target = data._target(int(data._rows[index]), (480, 640))
    return float(target.boxes.sum()) + len(data._arrays.file_names[index])


def pss(process: psutil.Process) -> float:
    return process.memory_full_info().pss / MIB


def measure(kind: str, folder: Path, samples: int) -> None:
    """Open the data set, and print times and memory for every number of workers."""
    import torch

    import vitdense.loading.loaders as loaders

    torch.set_num_threads(1)
    loaders.cpu_count = lambda: max(WORKERS)
    me, start = psutil.Process(), time.process_time()
    data = open_data(kind, folder)
    opened = time.process_time() - start
    status = Path('/proc/self/status').read_text().splitlines()
    peak = next(int(row.split()[1]) / 1024 for row in status if row.startswith('VmHWM'))
    rows = np.random.default_rng(0).permutation(len(data))[:ROWS].tolist()
    growth, _ = growth_in_a_fork(lambda: sum(read_row(data, row) for row in rows))
    print(
        f'{len(data):,} images: opened in {opened:.1f} s of CPU time, peak {peak:.0f} MiB; growth {growth:.1f} MiB',
        flush=True,
    )
    for workers in WORKERS:
        section = dict(batch_size=8, num_workers=workers)
        loader = loaders.train_loader(section, Rows(data), seed=0, rank=0, world_size=1, start=0, pin_memory=False)
        batches = iter(loader)
        for _ in range(1 + samples * max(workers, 1) // 8):
            next(batches)
        children = [pss(child) for child in me.children()]
        total = pss(me) + sum(children)
        print(f'  {workers} workers: {total:.0f} MiB, largest worker {max(children, default=0.0):.0f} MiB', flush=True)
        loaders.close_loaders()
        del batches, loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('kind', choices=('list', 'boxes'))
    parser.add_argument('--count', type=int)
    parser.add_argument('--samples', type=int, default=200, help='for each worker')
    parser.add_argument('--measure', metavar='FOLDER', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.kind, Path(options.measure), options.samples)
        return
    counts = 1000, options.count or {'list': 14_000_000, 'boxes': 860_000}[options.kind]
    for count in counts:
        with tempfile.TemporaryDirectory() as location:
            (write_list if options.kind == 'list' else write_boxes)(Path(location), count)
            words = [options.kind, '--samples', str(options.samples), '--measure', location]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == '__main__':
    main()
