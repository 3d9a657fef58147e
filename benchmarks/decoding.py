"""Reading images and making training samples, on one core: our data path against the usual ones.

    python benchmarks/decoding.py IMAGES LABELS [--rounds 9]

`decode` compares `read_image` with Pillow's `convert('RGB')`. `sample` compares the ADE20K training recipe (decode,
resize 2048 x 512 by 0.5 ... 2.0, crop 512 with category cap, flip, photometric distortion) with the same recipe written
on OpenCV and float32 NumPy, step by step as mmsegmentation runs it, and with Pillow and tensors normalised to float32
in the worker. IMAGES and LABELS are folders of matching names; any number of ADE20K pairs will do.
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

from vitdense.data.files.images import read_image  # noqa: E402
from vitdense.data.sampling import SampleIndex, SeededDataset  # noqa: E402
from vitdense.data.segmentation import SegmentationDataset  # noqa: E402
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize  # noqa: E402

CROP = 512


def opencv_sample(image: str, labels: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample as mmsegmentation's pipeline makes it: OpenCV, whole-image resize, float32 colours."""
    img = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
    raw = np.array(Image.open(labels))
    semantic = np.where(raw == 0, 255, raw - 1).astype(np.uint8)
    ratio = rng.uniform(0.5, 2.0)
    factor = min(2048 * ratio / max(img.shape[:2]), 512 * ratio / min(img.shape[:2]))
    size = int(img.shape[1] * factor + 0.5), int(img.shape[0] * factor + 0.5)
    img = cv2.resize(img, size, interpolation=cv2.INTER_LINEAR)
    semantic = cv2.resize(semantic, size, interpolation=cv2.INTER_NEAREST)
    window = capped_window(semantic, rng)
    img, semantic = img[window], semantic[window]
    if rng.random() < 0.5:
        img, semantic = np.flip(img, 1), np.flip(semantic, 1)
    img = float_distortion(img, rng)
    return torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1))), torch.from_numpy(semantic.copy())


def capped_window(semantic: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
    """The first of ten windows in which no class covers three quarters of the labelled pixels."""
    for _ in range(10):
        top, left = (rng.integers(max(side - CROP, 0) + 1) for side in semantic.shape)
        window = slice(top, top + CROP), slice(left, left + CROP)
        values, counts = np.unique(semantic[window], return_counts=True)
        counts = counts[values != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    return window


def float_distortion(img: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    def scaled(array: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return np.clip(array.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        img = scaled(img, beta=rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    if contrast_first and contrast != 1:
        img = scaled(img, alpha=contrast)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = scaled(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return scaled(img, alpha=contrast) if not contrast_first and contrast != 1 else img


def pillow_sample(image: str, labels: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample with Pillow, normalised to float32 in the worker."""
    img, semantic = Image.open(image).convert('RGB'), Image.open(labels)
    ratio = rng.uniform(0.5, 2.0)
    factor = min(2048 * ratio / max(img.size), 512 * ratio / min(img.size))
    size = int(img.width * factor + 0.5), int(img.height * factor + 0.5)
    img = np.asarray(img.resize(size, Image.Resampling.BILINEAR))
    raw = np.asarray(semantic.resize(size, Image.Resampling.NEAREST))
    semantic = np.where(raw == 0, 255, raw - 1).astype(np.uint8)
    window = capped_window(semantic, rng)
    img, semantic = img[window], semantic[window]
    if rng.random() < 0.5:
        img, semantic = np.flip(img, 1), np.flip(semantic, 1)
    array = float_distortion(img, rng).astype(np.float32) / 255
    array = (array - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))), torch.from_numpy(semantic.copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('images', type=Path)
    parser.add_argument('labels', type=Path)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--calls', type=int, default=30, help='samples per round')
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    recipe = [RandomResize(), RandomCrop(size=CROP), RandomFlip(), PhotometricDistortion()]
    dataset = SegmentationDataset(
        options.images, options.labels, classes='ade20k', reduce_zero_label=True, transforms=recipe
    )
    images = [str(path) for path in sorted(options.images.iterdir())]
    labels = [str(path) for path in sorted(options.labels.iterdir())]
    pairs = list(zip(images, labels, strict=True))

    def over(function, items):
        turn = itertools.cycle(items)
        return lambda: function(next(turn))

    seeded, numbers, rng = SeededDataset(dataset, 0), itertools.count(), np.random.default_rng(0)
    ours = over(lambda index: seeded[SampleIndex(next(numbers), index)], range(len(dataset)))
    decode = over(read_image, images)
    plain = over(lambda path: np.asarray(Image.open(path).convert('RGB')), images)
    times = {'rounds': options.rounds, 'calls': options.calls}
    print('decode, against Pillow:          ', paired(plain, decode, **times))
    print('sample, against the OpenCV recipe:', paired(over(lambda p: opencv_sample(*p, rng), pairs), ours, **times))
    print('sample, against Pillow + float:   ', paired(over(lambda p: pillow_sample(*p, rng), pairs), ours, **times))


if __name__ == '__main__':
    main()
