"""Every adapter with every head as an exported graph: the verdict of each pair, as a table.

    python benchmarks/export_matrix.py --out matrix.json
    python benchmarks/export_matrix.py --only simple vit-adapter --vits rope --out matrix.json

Small ViTs (48 channels, 2 blocks) with random weights that differ from image to image. One graph holds an adapter and
all heads that take its maps, so a row of the result is a head of that graph; where it cannot be exported, each head is
tried alone. ViT-Adapter, EoMT and rotary positions (DINOv3) are exported for two sizes, the others for one. onnxruntime
and, where installed, OpenVINO run them on drawn scenes. The score of a pair is that of the graph's predictions with the
model's as targets: mIoU, AP or top-1, 100 where they are equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.contracts.test_adapters_and_heads import ADAPTERS, HEADS, SMALL, VITS
from vitdense.adapters.plain import BackboneMaps
from vitdense.adapters.vit_adapter import ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.data.shapes import ShapesScenes
from vitdense.errors import ExportError
from vitdense.export.graph import HeadsGraph, export_onnx
from vitdense.export.graph_formats import finish
from vitdense.export.graph_network import GraphNetwork
from vitdense.export.verify import Side, Verdict, compare
from vitdense.heads.classify import ClassHead
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU
from vitdense.networks.eomt import EoMT
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.storage.atomic import write_json
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import SoftmaxCrossEntropy
from vitdense.tasks.mask_classification import MaskSemanticTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.types import Batch, Features, ImageClass, Instances, Meta, Outputs, Prediction, SemanticMap, Target

TWO_LAYERS = ('two-stage', 'dino')  # whose decoder layers start from what the layer before found
ALL_HEADS = {  # names of a traced module are identifiers
    name.replace('-', '_'): recipe
    if name in TWO_LAYERS or 'num_queries' not in recipe
    else recipe | dict(num_decoder_layers=1)
    for name, recipe in {**HEADS, 'classify': dict(type=ClassHead, pool='average')}.items()
}
DETECTORS = ('detr', 'deformable', 'two_stage', 'dino', 'real_time')
TWO_SIZES = ('vit-adapter', 'eomt')
NAMES = ['a', 'b', 'c', 'd']
NUM_IMAGES = 4
MIN_SCORE = 0.05  # of an object of the model that the graph has to find


class AllHeads(nn.Module):
    """One pass of a ViT and an adapter, and many heads on its maps."""

    def __init__(self, shared: SharedNetwork, heads: dict[str, dict]) -> None:
        super().__init__()
        self.shared, adapter = shared, shared.adapters['one']
        context = dict(in_channels=adapter.out_channels, strides=adapter.strides, num_classes=len(NAMES))
        self.heads = nn.ModuleDict({name: build(recipe, **context) for name, recipe in heads.items()})
        self.names, self.divisor = tuple(heads), shared.divisor
        self.mean, self.std = shared.mean, shared.std

    def maps(self, imgs: Tensor) -> Features:
        """Return the maps of the adapter."""
        layers = self.shared._union(self.shared.names)
        features = self.shared.backbone(imgs, None, layers=layers)
        features = self.shared._select(features, layers, self.shared._wanted['one'])
        return self.shared.adapters['one'](features, imgs)

    def forward(self, imgs: Tensor, valid: Tensor | None = None) -> dict[str, Outputs]:
        maps = self.maps(imgs)
        return {name: self.heads[name](maps) for name in self.names}


def network_of(kind: str, adapter: str) -> nn.Module:
    """Return the network of a ViT and an adapter with all heads; 'eomt' has its queries inside the ViT."""
    torch.manual_seed(0)
    vit = ViT(timm_args=SMALL, **VITS[kind])
    if adapter == 'eomt':
        network: nn.Module = EoMT(vit, num_queries=5, num_blocks=1, name='masks', num_classes={'masks': len(NAMES)})
    else:
        recipe = ADAPTERS[adapter]
        if recipe['type'] is ViTAdapter:  # it is the backbone
            vit, recipe = build(recipe, vit=vit), dict(type=BackboneMaps)
        branch = dict(adapter=recipe, head=HEADS['linear'])
        network = AllHeads(SharedNetwork(vit, {'one': branch}, num_classes=dict(one=len(NAMES))), ALL_HEADS)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return network.eval()


def task_of(head: str) -> Any:
    """Return the task that reads a head."""
    kinds = {**dict.fromkeys(DETECTORS, DetectionTask), 'classify': ClassificationTask, 'masks': MaskSemanticTask}
    kind = kinds.get(head, SemanticTask)
    if kind is not DetectionTask:
        return kind()
    softmax = {'classification': SoftmaxCrossEntropy()} if head == 'detr' else {}  # its last class is 'no object'
    return DetectionTask(num_classes=len(NAMES), **softmax)


def images_of(network: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """Return normalised scenes of `size`, (1, 3, H, W) each."""
    scenes = ShapesScenes(NUM_IMAGES, size=size, split='val', radius=(7, min(size) / 4))
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (network.mean, network.std))
    return [(scenes[row].img[None] / 255 - mean) / std for row in range(len(scenes))]


def sizes_of(network: nn.Module) -> list[tuple[int, int]]:
    """Return two sizes that all strides divide."""
    strides = network.shared.adapters['one'].strides if isinstance(network, AllHeads) else (1,)
    cell = torch.tensor([network.divisor, int(max(strides))])
    cell = int(torch.lcm(*cell)) * max(1, 64 // int(torch.lcm(*cell)))
    return [(2 * cell, 3 * cell), (3 * cell, 3 * cell)] if cell < 200 else [(cell, 2 * cell), (2 * cell, 2 * cell)]


class Agreeing:
    """The score of a head: that of the graph's predictions with the model's as targets."""

    def __init__(self, head: str) -> None:
        self.head, self.total, self.same = head, 0, 0
        metric = CocoAP if head in DETECTORS else MeanIoU
        self.metric = None if head == 'classify' else metric(head=head, classes=NAMES)

    def add(self, expected: Prediction, actual: Prediction, number: int) -> None:
        """Count one image."""
        if isinstance(expected, ImageClass):
            self.total, self.same = self.total + 1, self.same + int(expected.scores.argmax() == actual.scores.argmax())
            return
        if isinstance(expected, Instances):
            kept = expected.scores >= MIN_SCORE
            target = Target(boxes=expected.boxes[kept], labels=expected.labels[kept])
        else:
            assert isinstance(expected, SemanticMap)
            target = Target(semantic=expected.labels)
        self.metric.process(Batch(torch.empty(0), [target], [Meta(number)]), [{self.head: actual}])

    def score(self) -> float | None:
        """Return the score in points, None where there was nothing to find."""
        if self.metric is None:
            return 100 * self.same / self.total
        scores = self.metric.evaluate(self.total)
        value = scores.get(f'{self.head}/{"AP" if self.head in DETECTORS else "mIoU"}')
        return None if value is None else 100 * value


def judge(network: nn.Module, graph: nn.Module, size: tuple[int, int]) -> tuple[Verdict, dict[str, float | None]]:
    """Return the verdict on a graph for images of one size, and the score of each head."""
    images = images_of(network, size)
    meta = Meta(0, orig_size=size, size=size)
    tasks = {name: task_of(name) for name in graph.names}
    scores = {name: Agreeing(name) for name in graph.names}
    read: list[dict[str, Prediction]] = []

    def predict(outputs: dict[str, Outputs], number: int) -> dict[str, Prediction]:
        read.append({name: task.predict(outputs[name], [meta])[0] for name, task in tasks.items()})
        if len(read) % 2 == 0 and len(read) <= 2 * NUM_IMAGES:  # what follows is only timed
            for name, score in scores.items():
                score.add(read[-2][name], read[-1][name], number)
        return read[-1]

    verdict = compare(Side(network, images, predict), Side(graph, images, predict))
    return verdict, {name: score.score() for name, score in scores.items()}


def rows_of(kind: str, adapter: str, runtimes: Sequence[str], heads: Sequence[str]) -> list[dict]:
    """Return one row for each size, runtime and head."""
    network = network_of(kind, adapter)
    sizes, rows = sizes_of(network), []
    if adapter not in TWO_SIZES and kind != 'rope':
        sizes = sizes[:1]
    network.names = tuple(heads)
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            folder = Path(scratch, '-'.join(map(str, size)))
            folder.mkdir()
            try:
                graph = HeadsGraph(network, heads)
                slots = export_onnx(graph, folder / 'model.onnx', size=size, dynamic=('batch',))
            except ExportError as error:
                print(f'{kind} {adapter} {heads}: {error.why}', flush=True)
                continue
            info = {'heads': heads, 'outputs': slots, 'size': size, 'dynamic': ['batch'], 'precision': 'float32'}
            info |= {'inside': (), 'resizes': False}
            info |= {'divisor': network.divisor, 'mean': network.mean, 'std': network.std}
            for runtime in runtimes:
                rows += measured(network, folder, {**info, 'runtime': runtime}, (kind, adapter))
    if not rows and len(heads) > 1:
        return [row for head in heads for row in rows_of(kind, adapter, runtimes, [head])]
    return rows or [dict(vit=kind, adapter=adapter, head=heads[0], passed=False, runtime='none')]


def measured(network: nn.Module, folder: Path, info: dict, names: tuple[str, str]) -> list[dict]:
    """Return the rows of a graph in one runtime."""
    if info['runtime'] == 'openvino':
        finish(folder, runtime='openvino', half=False)
    verdict, scores = judge(network, GraphNetwork(folder, info), info['size'])
    rows = []
    for head in verdict.heads:
        outputs = [output for output in verdict.outputs if output.name.startswith(f'{head.head}.')]
        worst = max(outputs, key=lambda output: output.largest / output.scale)
        rows.append(
            dict(vit=names[0], adapter=names[1], head=head.head, runtime=info['runtime'], size=list(info['size']))
            | dict(largest=worst.largest / worst.scale, mean=worst.mean / worst.scale)
            | dict(same=head.same, total=head.total, what=head.what, score=scores[head.head])
            | dict(passed=all(output.passed for output in outputs))
            | dict(ratio=verdict.seconds['torch']['network'] / verdict.seconds['graph']['network'])
        )
    return rows


def table(rows: Sequence[dict]) -> str:
    """Return the rows as a Markdown table: the worst of both runtimes and all sizes for each adapter and head."""
    heads = list(dict.fromkeys(row['head'] for row in rows))
    lines = [f'| ViT | adapter | {" | ".join(heads)} |', '|---' * (len(heads) + 2) + '|']
    for names in dict.fromkeys((row['vit'], row['adapter']) for row in rows):
        cells = []
        for head in heads:
            mine = [row for row in rows if (row['vit'], row['adapter'], row['head']) == (*names, head)]
            cells.append(cell(mine) if mine else '')
        lines.append(f'| {names[0]} | {names[1]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def cell(rows: Sequence[dict]) -> str:
    """Return the largest difference of an output, and what is not equal; 'failed' for a pair without a graph."""
    if any('largest' not in row for row in rows):
        return '**failed**'
    text = f'{max(row["largest"] for row in rows):.0e}'
    missed = sum(row['total'] - row['same'] for row in rows)
    lost = max(100 - (100 if row['score'] is None else row['score']) for row in rows)
    text += f', {missed} of {sum(row["total"] for row in rows)} {rows[0]["what"]} differ' if missed else ''
    text += f', score -{lost:.2f}' if lost >= 0.1 else ''
    return text if all(row['passed'] for row in rows) else f'**{text}**'


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='the json file of all rows; those in it are kept')
    parser.add_argument('--vits', nargs='+', choices=VITS, default=list(VITS))
    parser.add_argument('--only', nargs='+', choices=[*ADAPTERS, 'eomt'], default=[*ADAPTERS, 'eomt'])
    parser.add_argument('--heads', nargs='+', choices=[*ALL_HEADS, 'masks'], help='of the graph (default: all)')
    parser.add_argument('--runtimes', nargs='+', choices=('onnx', 'openvino'), default=['onnx', 'openvino'])
    parser.add_argument('--table', action='store_true', help='print the rows of the json file as a table, no more')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text())['rows'] if args.out.exists() else []
    if args.table:
        print(table(rows))
        return
    for kind in args.vits:
        for adapter in args.only:
            known = {row['head'] for row in rows if (row['vit'], row['adapter']) == (kind, adapter)}
            heads = [
                head for head in args.heads or (['masks'] if adapter == 'eomt' else ALL_HEADS) if head not in known
            ]
            if not heads:
                continue
            start = time.perf_counter()
            rows += rows_of(kind, adapter, args.runtimes, heads)
            write_json(args.out, {'rows': rows})
            mine = [row for row in rows if (row['vit'], row['adapter']) == (kind, adapter)]
            failed = [(row['head'], row['runtime']) for row in mine if not row['passed']]
            print(
                f'{kind} {adapter}: {len(mine)} rows, failed {failed}, {time.perf_counter() - start:.0f} s', flush=True
            )


if __name__ == '__main__':
    main()
