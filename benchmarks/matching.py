"""P10: Hungarian matching of 16 images x 900 queries x 100 objects, against transformers' matcher.

    python benchmarks/matching.py [--rounds 7]

Both compute the costs of class (focal), L1 and GIoU and solve the assignment; the assignments are compared before
anything is timed. A batch of two images, and 7 objects an image (COCO's mean), are shown beside. One torch thread.
Bar: >= 20x on 16 x 900 x 100.
"""

from __future__ import annotations

import argparse

import torch
from paired import paired
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from vitdense.tasks.matching import HungarianMatcher, LayerPredictions, ObjectTargets

CLASSES = 91


def boxes_cxcywh(*shape: int) -> Tensor:
    return torch.cat([torch.rand(*shape, 2), 0.02 + 0.4 * torch.rand(*shape, 2)], dim=-1)


def scene(batch: int, queries: int, objects: int) -> tuple[LayerPredictions, ObjectTargets]:
    total = batch * objects
    predictions = LayerPredictions(1.5 * torch.randn(1, batch, queries, CLASSES) - 2, boxes_cxcywh(1, batch, queries))
    images = torch.arange(batch).repeat_interleave(objects)
    crowd = torch.zeros(total, dtype=torch.bool)
    return predictions, ObjectTargets(
        torch.randint(CLASSES, (total,)), boxes_cxcywh(total), images, crowd, (objects,) * batch
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, theirs = HungarianMatcher(), DeformableDetrHungarianMatcher(2, 5, 2)
    for size in ((16, 900, 100), (2, 900, 100), (16, 300, 7)):
        predictions, object_targets = scene(*size)
        outputs = {'logits': predictions.logits[0], 'pred_boxes': predictions.boxes[0]}
        pairs = zip(
            object_targets.labels.split(object_targets.counts),
            object_targets.boxes.split(object_targets.counts),
            strict=True,
        )
        targets = [{'class_labels': labels, 'boxes': boxes} for labels, boxes in pairs]

        def peer(outputs: dict = outputs, targets: list = targets) -> list:
            return theirs(outputs, targets)

        def mine(predictions: LayerPredictions = predictions, object_targets: ObjectTargets = object_targets) -> Tensor:
            return ours([predictions], object_targets)[0][0]

        rows = mine()
        for image, (queries, objects) in enumerate(peer()):
            assert torch.equal(rows[image, queries], objects + object_targets.starts[image])
            assert (rows[image] >= 0).sum() == len(queries)
        print(f'{size[0]} x {size[1]} x {size[2]}: {paired(peer, mine, rounds)}', flush=True)


if __name__ == '__main__':
    main()
