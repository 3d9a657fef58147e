"""Preprocessing and predictions inside a graph: those of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from tests.export.conftest import CLASSES
from vitdense.checkpoints.model_folder import read_model_folder
from vitdense.data.transforms import geometry
from vitdense.data.transforms.common import ResizeShortSide, ResizeTo
from vitdense.errors import ExportError
from vitdense.export import graph_network
from vitdense.export.graph import HeadsGraph
from vitdense.export.graph_network import GraphNetwork
from vitdense.export.inside import PredictionReader, Preprocessing, check_tasks, preprocessing_of
from vitdense.export.verify import equal_predictions
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.ops.resample import filter_weights
from vitdense.tasks.detection import DetectionTask
from vitdense.types import PixelOutputs, QueryOutputs


@pytest.mark.parametrize('size', [(40, 30), (75, 91)])
@pytest.mark.parametrize('antialias', [True, False])
def test_the_resize_of_a_graph_is_that_of_the_transform(size: tuple[int, int], antialias: bool):
    generator = torch.Generator().manual_seed(0)
    img = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8, generator=generator)
    expected = geometry.resize_image(tv_tensors.Image(img), size, antialias=antialias).float()
    rows, columns = (
        filter_weights(*each, like=torch.zeros(1), antialias=antialias) for each in zip(size, (60, 70), strict=True)
    )
    actual = (rows @ img.float() @ columns.T).round()
    assert (actual - expected).abs().max() <= 1


@pytest.mark.parametrize('sides', [(14, 16), (37, 27), (3, 9)])
def test_cubic_weights_are_those_of_torch(sides: tuple[int, int]):
    x = torch.randn(1, 2, sides[0], sides[0])
    expected = torch.nn.functional.interpolate(x, (sides[1], sides[1]), mode='bicubic', antialias=True)
    weights = filter_weights(sides[1], sides[0], like=x, cubic=True)
    torch.testing.assert_close(weights @ x @ weights.T, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('inside', [('predictions',), ('preprocessing',), ('preprocessing', 'predictions')])
def test_predictions_are_those_of_the_model(
    source: Path, images: list[torch.Tensor], inside: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    model, info = read_model_folder(source)
    network, names = model.eval().network, tuple(model.network.names)
    before = preprocessing_of(model, info['transforms']) if 'preprocessing' in inside else None
    tasks = check_tasks(model, names) if 'predictions' in inside else None
    graph = HeadsGraph(network, names, before=before, tasks=tasks).eval()

    @torch.inference_mode()
    def run(array: np.ndarray) -> list[np.ndarray]:
        assert array.dtype == (np.uint8 if before else np.float32)
        return [tensor.numpy() for tensor in graph(torch.from_numpy(array))]

    monkeypatch.setattr(graph_network, 'open_graph', lambda folder, content, trusted: run)
    with torch.inference_mode():
        example = images[0][None] if before else torch.randn(1, 3, 64, 64)
        slots = list(graph.tensors(example))
    content = {'heads': names, 'divisor': network.divisor, 'mean': network.mean, 'std': network.std, 'size': (64, 64)}
    content |= {'dynamic': ['batch', 'size'], 'outputs': slots, 'inside': inside, 'resizes': before is not None}
    readers = {name: PredictionReader(task) if tasks else task for name, task in model.tasks.items()}
    exported = DenseModel(GraphNetwork(Path(), content), readers, classes=CLASSES)
    ours = Predictor(exported, transforms=() if before else info['transforms'], device='cpu', amp='off')
    theirs = Predictor(model, transforms=info['transforms'], device='cpu', amp='off')
    for expected, actual in zip(theirs(images), ours(images), strict=True):
        equal, total = equal_predictions(expected['det'], actual['det'])
        assert before or equal == total > 0  # objects of random weights follow single gray levels of the resize
        torch.testing.assert_close(expected['det'].scores, actual['det'].scores, atol=0.05, rtol=0)
        assert (expected['sem'].labels == actual['sem'].labels).float().mean() > 0.95
        torch.testing.assert_close(expected['cls'].scores, actual['cls'].scores, atol=0.02 if before else 1e-5, rtol=0)


def test_a_map_that_was_resized_inside_is_that_of_the_task():
    outputs = PixelOutputs(torch.randn(2, 3, 4, 4), (16, 16))
    from vitdense.tasks.semantic import SemanticTask
    from vitdense.types import Meta

    labels = SemanticTask().graph_predictions(outputs, (20, 30), (20, 30))['map']
    expected = SemanticTask().predict(outputs, [Meta(0, orig_size=(20, 30), size=(16, 16))] * 2)
    assert labels.dtype == torch.uint8 and torch.equal(labels, torch.stack([each.labels for each in expected]))


def test_padding_is_cut_from_maps_and_boxes_stay_inside():
    class Network:
        divisor, mean, std = 16, (0.5,) * 3, (0.5,) * 3

    padded = Preprocessing(Network, None)(torch.zeros(1, 3, 20, 30, dtype=torch.uint8))
    assert padded.shape == (1, 3, 32, 32) and (padded[:, :, :20, :30] == -1).all() and (padded[:, :, 20:] == 0).all()
    outputs = QueryOutputs(torch.tensor([[[2.0]]]), boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]))
    actual = DetectionTask().graph_predictions(outputs, (32, 32), (20, 30))
    assert actual['boxes'].tolist() == [[[0, 0, 30, 20]]] and actual['labels'].tolist() == [[0]]


def test_what_cannot_be_inside_is_named(source: Path):
    model, _ = read_model_folder(source)
    with pytest.raises(ExportError, match='its evaluation transforms are ResizeShortSide'):
        preprocessing_of(model, [ResizeShortSide(size=64)])
    assert preprocessing_of(model, [ResizeTo(size=48)]).resize.size == (48, 48)
    model.tasks['det'].nms_iou = 0.5
    with pytest.raises(ExportError, match='different number of objects'):
        model.tasks['det'].graph_predictions(QueryOutputs(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4)), (8, 8), (8, 8))
