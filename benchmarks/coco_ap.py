"""P8: COCO AP of 5,000 images with 100 predictions each, against pycocotools.

    python benchmarks/coco_ap.py [--rounds 7] [--images 5000] [--engine fast]

The peer is what everybody runs: `COCO.loadRes` on rows of results, `COCOeval.evaluate` and `accumulate`; building its
index of the annotations is not timed. Ours begins with `Target` and `Instances` records, as a validation does. The
arrays of precision and recall are compared before anything is timed: they are identical. pycocotools needs about a
minute and 2 GB for each round. Bar: >= 50x with the extra `fast`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from paired import paired  # noqa: E402

from vitdense.metrics.average_precision import CocoAP  # noqa: E402
from vitdense.metrics.coco_columns import results_of, target_columns  # noqa: E402
from vitdense.types import Batch, Instances, Meta, Target  # noqa: E402

CLASSES, NUM_PREDICTIONS = 80, 100
Image = tuple[Target, Meta, Instances]


def make_images(count: int) -> list[Image]:
    """Images with about 7 objects, as in COCO, and 100 predictions: near the objects, and anywhere."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        objects = int(rng.poisson(7.3))
        corner = rng.uniform(0, 400, (objects, 2))
        boxes = np.concatenate([corner, corner + rng.gamma(2, 50, (objects, 2)) + 4], 1).round(2)
        labels = rng.integers(0, CLASSES, objects)
        chosen = rng.integers(0, objects, NUM_PREDICTIONS // 2) if objects else np.zeros(0, np.int64)
        far = rng.uniform(0, 400, (NUM_PREDICTIONS - len(chosen), 2))
        near = boxes[chosen] + rng.normal(0, 8, (len(chosen), 4))
        actual = np.concatenate([near, np.concatenate([far, far + rng.gamma(2, 50, far.shape) + 1], 1)])
        predicted_labels = np.concatenate([labels[chosen], rng.integers(0, CLASSES, len(far))])
        scores = np.sort(rng.random(NUM_PREDICTIONS))[::-1].copy()
        sides = boxes[:, 2:] - boxes[:, :2]
        target = Target(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            iscrowd=torch.from_numpy(rng.random(objects) < 0.01),
            area=torch.from_numpy((sides.prod(1) * 0.7).round(2)),
        )
        order = rng.permutation(NUM_PREDICTIONS)
        output = torch.from_numpy(actual[order]).float(), torch.from_numpy(scores).float()
        images.append(
            (
                target,
                Meta(number + 1, dataset='synthetic'),
                Instances(*output, torch.from_numpy(predicted_labels[order])),
            )
        )
    return images


def index_of(images: list[Image]) -> COCO:
    """The annotations as pycocotools holds them."""
    annotations = []
    for target, meta, _ in images:
        rows = zip(
            target_columns([target]).boxes.tolist(),
            target.labels.tolist(),
            target.area.tolist(),
            target.iscrowd.tolist(),
            strict=True,
        )
        for box, label, area, crowd in rows:
            record = dict(id=len(annotations) + 1, image_id=meta.image_id, category_id=label + 1, bbox=box, area=area)
            annotations.append(record | dict(iscrowd=int(crowd)))
    known = COCO()
    known.dataset = dict(
        images=[dict(id=meta.image_id) for _, meta, _ in images],
        categories=[dict(id=number + 1) for number in range(CLASSES)],
        annotations=annotations,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--engine', choices=('pycocotools', 'fast'), default='fast', help='what our metric uses')
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = make_images(options.images)
    known = index_of(images)
    ids = range(1, CLASSES + 1)
    rows = [row for _, meta, actual in images for row in results_of(actual, meta.image_id, ids)]
    names = [f'class {number}' for number in range(CLASSES)]
    img = torch.zeros(1, 3, 1, 1)

    def pycocotools() -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(known, known.loadRes(rows), 'bbox')
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def ours() -> CocoAP:
        metric = CocoAP(classes=names, engine=options.engine)
        for target, meta, actual in images:
            metric.process(Batch(img, [target], [meta]), [{'det': actual}])
        metric.evaluate(len(images))
        return metric

    expected, curves = pycocotools().eval, ours()._curves
    assert np.array_equal(curves.precision, expected['precision'])
    assert np.array_equal(curves.recall, expected['recall'])
    text = f'{options.images} images x {NUM_PREDICTIONS} predictions, {options.engine}'
    print(f'{text}: {paired(pycocotools, ours, options.rounds, warmup=0)}', flush=True)


if __name__ == '__main__':
    main()
