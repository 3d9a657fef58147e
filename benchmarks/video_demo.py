"""P13: the video demo (decode, network, labels, overlay, mp4v or H.264, verify) against the model alone, at 512 px.

    python benchmarks/video_demo.py [--rounds 7] [--network vit_tiny_patch16_224] [--video FILE] [--frames 40]
                                    [--weights FILE] [--amp off] [--device cpu] [--encoder pyav]

Both get the same frames of 512 x 512, one at a time. The model alone gets them as tensors and returns label
maps. Without --video, moving shapes are drawn. One torch thread. Bar: >= 0.9x of the frames per second.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from paired import paired

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.linear import LinearHead
from vitdense.inference.demo import Demo, Options
from vitdense.inference.inputs import Input, OutputNames
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.types import Batch, Meta, Target
from vitdense.video.reader import VideoReader
from vitdense.video.writer import VideoWriter, count_frames

SIDE = 512
CLASSES = [f'thing {index}' for index in range(19)]


def sampled(count: int) -> list[np.ndarray]:
    """Return frames of discs that move over a slope of grey."""
    frames = []
    for time in range(count):
        frame = np.repeat(np.linspace(60, 180, SIDE).astype(np.uint8)[:, None, None], SIDE, 1).repeat(3, 2)
        for number in range(8):
            center = (60 * number + 5 * time) % SIDE, (90 * number + 3 * time) % SIDE
            cv2.circle(frame, center, 30 + 5 * number, (30 * number, 255 - 30 * number, 120), -1)
        frames.append(frame)
    return frames


def read(path: str, count: int) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [cv2.resize(frame.image, (SIDE, SIDE)) for frame in itertools.islice(reader, count)]


def as_batch(frame: np.ndarray) -> Batch:
    img = torch.from_numpy(frame).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return Batch(img[None], [Target()], [Meta(0, orig_size=(SIDE, SIDE), size=(SIDE, SIDE))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--network', default='vit_tiny_patch16_224', help='name of a ViT of timm')
    parser.add_argument('--weights', default=False, help='weights of the ViT (default: random)')
    parser.add_argument('--video', help='a video file (default: drawn shapes)')
    parser.add_argument('--frames', type=int, default=40)
    parser.add_argument('--encoder', default='opencv', choices=('opencv', 'pyav'), help='mp4v, or H.264')
    parser.add_argument('--amp', default='off', choices=('auto', 'bf16', 'fp16', 'off'))
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1, help='of torch')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.getLogger('vitdense').setLevel(logging.ERROR)
    network = SharedNetwork(
        ViT(arguments.network, pretrained=arguments.weights, img_size=SIDE),
        {'sem': dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead))},
        num_classes={'sem': len(CLASSES)},
    )
    model = DenseModel(network, {'sem': SemanticTask()}, classes={'semantic': CLASSES})
    predictor = Predictor(model, device=arguments.device, amp=arguments.amp)
    frames = read(arguments.video, arguments.frames) if arguments.video else sampled(arguments.frames)
    batches = [model.data_preprocessor(as_batch(frame), False) for frame in frames]

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'source.mp4')
        with VideoWriter(source, (SIDE, SIDE), 25, encoder='opencv') as writer:
            for frame in frames:
                writer.write(frame)
        item = Input('video', source)

        @torch.inference_mode()
        def alone() -> None:
            for batch in batches:
                model(*batch, mode='predict')[0]['sem'].labels.cpu()

        def demo() -> None:
            written = Demo(predictor, OutputNames(Path(folder, 'out'), [item]), Options(encoder=arguments.encoder))
            written.run([item])
            if count_frames(written.entries[0]['output']) != len(frames):
                raise RuntimeError('the written file has not all frames')

        ratio = paired(alone, demo, arguments.rounds)
    count = len(frames)
    print(f'{arguments.network}, {count} frames of {SIDE} x {SIDE}, {arguments.device}, amp {arguments.amp}')
    print(f'frames per second: {count / ratio.seconds_a:.2f} alone, {count / ratio.seconds_b:.2f} as a video demo')
    print(f'P13 video demo against the model alone: {ratio}   bar >= 0.90x')


if __name__ == '__main__':
    main()
