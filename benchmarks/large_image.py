"""Peak memory and time of segmenting a large image in windows: 5000 x 4000 pixels, 150 classes, on a CPU.

    python benchmarks/large_image.py [--width 5000] [--height 4000] [--classes 150] [--tile 512] [--depth 2]
        [--queries 100] [--tiff]

A ViT-Ti of `depth` random blocks with a linear head, or with `queries` as an EoMT, float32, one thread. Memory is that
of the labels and of what the network said about two rows of windows, whatever the depth. The peak is the resident size
of the process, libraries and image included (Linux). With --tiff the image is a file of 256 x 256 tiles, which is never
read whole: --width 20000 --height 20000 --classes 3 --tile 1024. Bar: <= 2.5 GB at the defaults.
"""

from __future__ import annotations

import argparse
import resource
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.eomt import EoMT
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.mask_classification import MaskSemanticTask
from vitdense.tasks.semantic import SemanticTask

BAR = 2.5  # GB


def write_tiff(path: Path, height: int, width: int, side: int = 256) -> Path:
    """Write a TIFF (6.0, section 15) all of whose tiles are the same one."""
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    data, count = zlib.compress(pixels.tobytes()), -(-height // side) * -(-width // side)
    data += b'\0' * (len(data) % 2)
    at = 8 + len(data)
    lists = struct.pack(f'<{2 * count}I3H', *[8] * count, *[len(data)] * count, 8, 8, 8)
    rows = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at + 8 * count), (259, 4, 1, 8), (262, 4, 1, 2)]
    rows += [(277, 4, 1, 3), (322, 4, 1, side), (323, 4, 1, side), (324, 4, count, at), (325, 4, count, at + 4 * count)]
    head = b'II*\0' + struct.pack('<I', at + len(lists))
    directory = struct.pack('<H', len(rows)) + b''.join(struct.pack('<HHII', *row) for row in rows) + bytes(4)
    path.write_bytes(head + data + lists + directory)
    return path


def segment(
    height: int, width: int, *, classes: int, tile: int, depth: int, queries: int = 0, tiff: bool = False
) -> tuple[int, float]:
    """Return the peak resident size of this process in bytes, and the seconds of one prediction."""
    vit = ViT('vit_tiny_patch16_224', img_size=tile, timm_args=dict(depth=depth))
    names = {'semantic': [str(number) for number in range(classes)]}
    if queries:
        network, task = EoMT(vit, num_queries=queries, num_blocks=1, num_classes={'sem': classes}), MaskSemanticTask()
    else:
        branch = dict(adapter=PlainMaps(192, 16), head=LinearHead((192,), (16,), classes))
        network, task = SharedNetwork(vit, {'sem': branch}), SemanticTask()
    model = DenseModel(network, {'sem': task}, classes=names)
    predictor = Predictor(model, device='cpu', amp='off', tile=tile)
    with tempfile.TemporaryDirectory() as folder:
        if tiff:
            image = write_tiff(Path(folder, 'image.tif'), height, width)
        else:
            image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        start = time.perf_counter()
        result = predictor(image)
    if tuple(result['sem'].labels.shape) != (height, width):
        raise RuntimeError(f'labels of {tuple(result["sem"].labels.shape)} for an image of {(height, width)}')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = dict(width=5000, height=4000, classes=150, tile=512, depth=2, queries=0)
    for name, value in defaults.items():
        parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--tiff', action='store_true', help='read the image from a TIFF file in windows')
    requested = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = dict(
        classes=requested.classes,
        tile=requested.tile,
        depth=requested.depth,
        queries=requested.queries,
        tiff=requested.tiff,
    )
    peak, seconds = segment(requested.height, requested.width, **parts)
    print(f'peak {peak / 1e9:.2f} GB, {seconds:.0f} s')
    if vars(requested) | dict(queries=0) == defaults | dict(tiff=False):
        print(f'bar {BAR} GB: {"kept" if peak <= BAR * 1e9 else "MISSED"}')


if __name__ == '__main__':
    main()
