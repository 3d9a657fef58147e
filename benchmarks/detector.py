"""P3, P4: two-stage Deformable-DETR at 640 x 640 against transformers, at equal weights: inference and training steps.

    python benchmarks/detector.py [--rounds 7] [--size 640] [--batch 2]

Both detectors have the same ResNet-50 of transformers in front (it is the peer's own), four levels, 300 queries, six
encoder and six decoder layers with box refinement. Outputs are compared before anything is timed. A training step is
forward, matching and losses of all layers and of the proposals, backward and AdamW. One torch thread; seconds are its
processor time. Bars: inference >= 1.8x, training step >= 1.4x.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from paired import paired
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.queries import QuerySelection
from vitdense.ops.boxes import scales_of, to_xyxy
from vitdense.tasks.detection import DetectionTask
from vitdense.types import Features, QueryOutputs, Target

NUM_CLASSES = 80
STRIDES, CHANNELS = (8, 16, 32), (512, 1024, 2048)
NUM_OBJECTS = 10
RENAMED = {  # theirs -> ours, in this order
    'model.level_embed': 'encoder.level_embed',
    'model.encoder.': 'encoder.',
    'model.decoder.layers': 'decoder.layers',
    'model.enc_output.': 'queries.transforms.0.0.',
    'model.enc_output_norm.': 'queries.transforms.0.1.',
    'model.pos_trans.': 'queries.encoding.linear.',
    'model.pos_trans_norm.': 'queries.encoding.norm.',
    'class_embed.': 'decoder.class_predictors.',
    'bbox_embed.': 'decoder.box_predictors.',
    '.self_attn_layer_norm.': '.add1.norm.',
    '.encoder_attn_layer_norm.': '.add2.norm.',
    '.final_layer_norm.': '.feed_forward.add.norm.',
    '.encoder_attn.': '.cross_attn.',
    '.mlp.fc': '.feed_forward.linear',
    '.o_proj.': '.out_proj.',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--size', type=int, default=640, help='side of the square images in pixels')
    parser.add_argument('--batch', type=int, default=2, help='images of a training step')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    theirs = peer()
    ours = Detector(theirs.model.backbone)
    copy_weights(theirs, ours.head)
    inference(theirs.eval(), ours.eval(), arguments.size, arguments.rounds)
    training(theirs.train(), ours.train(), arguments.size, arguments.batch, arguments.rounds)


class Detector(nn.Module):
    """Our head behind the backbone of the peer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = DeformableDetrHead(CHANNELS, STRIDES, NUM_CLASSES, num_levels=4, selection=QuerySelection())

    def forward(self, imgs: Tensor) -> QueryOutputs:
        whole = torch.ones(len(imgs), *imgs.shape[-2:], dtype=torch.long)
        return self.output([x for x, _ in self.backbone(imgs, whole)], tuple(imgs.shape[-2:]))

    def output(self, maps: list[Tensor], size: tuple[int, int]) -> QueryOutputs:
        return self.head(Features(maps=tuple(maps), input_size=size))


class Recorded(nn.Module):
    """A backbone that has seen its image already."""

    def __init__(self, features: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.features = features

    def forward(self, imgs: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        return self.features


def inference(theirs: nn.Module, ours: Detector, size: int, rounds: int) -> None:
    """Compare outputs and time both, with the backbone and behind it."""
    imgs = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        wanted, got = theirs(imgs), ours(imgs)
        a = torch.cat([got.class_logits, got.boxes], -1)[0]
        b = torch.cat([wanted.logits, wanted.pred_boxes], -1)[0]
        rows, columns = linear_sum_assignment(torch.cdist(a, b, p=float('inf')))  # near ties of proposals change places
        parts = zip(a[rows].split([NUM_CLASSES, 4], -1), b[columns].split([NUM_CLASSES, 4], -1), strict=True)
        for name, (actual, expected) in zip(('logits', 'boxes'), parts, strict=True):
            error = ((actual - expected).abs().max() / expected.abs().max()).item()
            print(f'{name}: largest difference / largest value = {error:.1e}', flush=True)
            assert error < 1e-4, 'the two detectors do not compute the same'
        report('inference', lambda: theirs(imgs), lambda: ours(imgs), rounds, bar=1.8)
        features = ours.backbone(imgs, torch.ones(1, size, size, dtype=torch.long))
        theirs.model.backbone = Recorded(features)
        maps = [x for x, _ in features]
        report('  behind the backbone', lambda: theirs(imgs), lambda: ours.output(maps, (size, size)), rounds)
    theirs.model.backbone = ours.backbone


def training(theirs: nn.Module, ours: Detector, size: int, batch: int, rounds: int) -> None:
    """Time whole training steps. The losses are not the same number: theirs matches in another order of weights."""
    imgs = torch.randn(batch, 3, size, size)
    boxes = torch.cat(
        [torch.rand(batch, NUM_OBJECTS, 2) * 0.4 + 0.3, torch.rand(batch, NUM_OBJECTS, 2) * 0.4 + 0.1], -1
    )
    labels = torch.randint(NUM_CLASSES, (batch, NUM_OBJECTS))
    object_targets = [{'class_labels': label, 'boxes': box} for label, box in zip(labels, boxes, strict=True)]
    pixels = to_xyxy(boxes) * scales_of(torch.tensor([float(size), float(size)]))
    crowd = torch.zeros(NUM_OBJECTS, dtype=torch.bool)
    targets = [Target(boxes=box, labels=label, iscrowd=crowd) for box, label in zip(pixels, labels, strict=True)]
    task = DetectionTask()
    steps = [
        step_of(theirs, lambda: theirs(imgs, labels=object_targets).loss),
        step_of(ours, lambda: sum(task.loss(ours(imgs), targets).values())),
    ]
    report(f'training step, batch {batch}', *steps, rounds, bar=1.4)


def step_of(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    return step


def report(name: str, a: Callable, b: Callable, rounds: int, *, bar: float | None = None) -> None:
    ratio = paired(a, b, rounds, clock=time.process_time)
    verdict = '' if bar is None else f'   bar {bar}x: {"reached" if ratio.median >= bar else "MISSED"}'
    print(f'{name}: {ratio}{verdict}', flush=True)


def peer() -> nn.Module:
    """Return transformers' detector with random weights whose boxes, offsets and scores differ from query to query."""
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(out_features=['stage2', 'stage3', 'stage4']),
        two_stage=True,
        with_box_refine=True,
        num_labels=NUM_CLASSES,
        auxiliary_loss=True,
    )
    model = DeformableDetrForObjectDetection(config)
    for name, tensor in model.named_parameters():
        if 'sampling_offsets.weight' in name or 'attention_weights.weight' in name or 'bbox_embed' in name:
            nn.init.normal_(tensor, std=0.02)
    return model


def copy_weights(theirs: nn.Module, head: nn.Module) -> None:
    """Copy every weight behind the backbone; of the first stage's classes only the first one is read."""
    unused = ('model.backbone.', 'model.decoder.class_embed', 'model.decoder.bbox_embed')
    state = {}
    for key, tensor in theirs.state_dict().items():
        if key.startswith(unused):
            continue
        for level in range(4):
            key = key.replace(f'model.input_proj.{level}.0.', f'project.convs.{level}.')
            key = key.replace(f'model.input_proj.{level}.1.', f'project.norms.{level}.')
        for their_name, our_name in RENAMED.items():
            key = key.replace(their_name, our_name)
        if 'box_predictors' in key:
            key = key.replace('.layers.', '.linears.')
        for part in ('class', 'box'):
            key = key.replace(f'decoder.{part}_predictors.6.', f'queries.{part}_predictors.0.')
        state[key] = tensor[:1] if key.startswith('queries.class_predictors') else tensor
    for key in [key for key in state if '.q_proj.' in key]:
        packed = torch.cat([state.pop(key.replace('.q_proj.', f'.{part}_proj.')) for part in 'qkv'])
        state[key.replace('.q_proj.', '.in_proj_')] = packed
    head.load_state_dict(state, strict=True)


if __name__ == '__main__':
    main()
