"""P9, detection: training samples of large-scale jitter at 1024, per second and core, against resize, crop and pad.

    python benchmarks/detection_samples.py ANNOTATIONS.json IMAGES [--rounds 7]

Ours is `CocoDetection` with `RandomFlip` and `LargeScaleJitter`: what stays is cut out first, and only that is resized.
The peers do what detectron2's recipe does step by step: the whole image is resized (Pillow, bilinear), cut, filled up
and flipped, its boxes with it; one of them also normalises to float32, as is usual in a worker. Sizes and scales are
drawn from the same ranges; decoding is part of the work. One core. Bar: >= 2.5x.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from paired import paired  # noqa: E402

from vitdense.data.coco.dataset import CocoDetection  # noqa: E402
from vitdense.data.sampling import SampleIndex, SeededDataset  # noqa: E402
from vitdense.data.transforms.common import RandomFlip  # noqa: E402
from vitdense.data.transforms.detection import LargeScaleJitter  # noqa: E402

SIDE = 1024
MEAN, STD = np.float32([123.7, 116.3, 103.5]), np.float32([58.4, 57.1, 57.4])


def step_by_step(path: str, boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One sample by resize, crop, pad and flip: (1024, 1024, 3) uint8, and the boxes that are left."""
    image = Image.open(path).convert('RGB')
    factor = rng.uniform(0.1, 2.0) * SIDE / max(image.size)
    size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
    img = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    boxes = boxes * np.tile(np.float32(size) / np.float32(image.size), 2)
    left, top = (int(rng.integers(max(side - SIDE, 0) + 1)) for side in size)
    img = img[top : top + SIDE, left : left + SIDE]
    boxes = (boxes - np.float32([left, top, left, top])).clip(0, np.tile(img.shape[1::-1], 2))
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    canvas = np.full((SIDE, SIDE, 3), 128, np.uint8)
    canvas[: img.shape[0], : img.shape[1]] = img
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
        boxes = np.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], 1)
    return np.ascontiguousarray(canvas), boxes


def as_float(sample: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy((sample[0].astype(np.float32) - MEAN) / STD).permute(2, 0, 1).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('annotations', type=Path)
    parser.add_argument('images', type=Path)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--calls', type=int, default=40, help='samples of a round')
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    plain = CocoDetection(options.annotations, options.images)
    context = [
        (sample.meta.path, sample.target.boxes.numpy())
        for sample in (plain[row] for row in range(min(len(plain), 200)))
    ]
    ours = SeededDataset(
        CocoDetection(options.annotations, options.images, transforms=[RandomFlip(), LargeScaleJitter(size=SIDE)]), 0
    )
    rng, numbers, turn = np.random.default_rng(0), itertools.count(), itertools.cycle(context)

    def cut_first() -> object:
        number = next(numbers)
        return ours[SampleIndex(number, number % len(context))]

    times = dict(rounds=options.rounds, calls=options.calls)
    print('against resize, crop, pad:         ', paired(lambda: step_by_step(*next(turn), rng), cut_first, **times))
    print(
        'against the same in float32:       ',
        paired(lambda: as_float(step_by_step(*next(turn), rng)), cut_first, **times),
    )


if __name__ == '__main__':
    main()
