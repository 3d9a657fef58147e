"""A model and its exported graph: the same outputs, predictions and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdense
from tests.export.conftest import CLASSES, RESIZE
from vitdense.errors import ExportError
from vitdense.export.folder import export_model, fixed_size, read_exported, verify
from vitdense.export.verify import Side, compare, equal_predictions
from vitdense.types import ImageClass, Instances, SemanticMap

pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')


def test_one_graph_holds_all_heads_in_plain_operators(exported: Path):
    import onnx

    graph = onnx.load(str(exported / 'model.onnx'))
    assert {node.domain for node in graph.graph.node} <= {'', 'ai.onnx'}
    heads = {output.name.partition('.')[0] for output in graph.graph.output}
    assert heads == {'det', 'sem', 'cls'}


def test_predictions_of_the_graph_are_those_of_the_model(source: Path, exported: Path, images: list[torch.Tensor]):
    theirs, ours = (vitdense.load(folder, device='cpu', amp='off') for folder in (source, exported))
    for expected, actual in zip(theirs(images), ours(images), strict=True):
        assert (expected['sem'].labels == actual['sem'].labels).all()
        torch.testing.assert_close(expected['cls'].scores, actual['cls'].scores, atol=1e-5, rtol=1e-4)
        equal, total = equal_predictions(expected['det'], actual['det'])
        assert equal == total > 0


def test_the_verdict_is_kept_and_passes(source: Path, exported: Path, images: list[torch.Tensor]):
    verdict = verify(source, exported, images)
    kept = json.loads((exported / 'export.json').read_text())['verdict']
    assert verdict.passed and kept['passed'] and kept['images'] == 3
    assert {output.name for output in verdict.outputs} == {
        'det.class_logits', 'det.boxes', 'sem.logits', 'cls.logits'
    }  # fmt: skip
    assert all(output.largest < 1e-4 * output.scale for output in verdict.outputs)


def test_other_weights_do_not_pass(source: Path, exported: Path):
    model = vitdense.load(source, device='cpu', amp='off').model
    graph, _ = read_exported(exported)
    with torch.no_grad():
        [value for name, value in model.network.heads['cls'].named_parameters() if name.endswith('bias')][-1].add_(1.0)
    batches = [torch.randn(1, 3, 64, 64)]
    read = lambda outputs, number: {'cls': model.tasks['cls'].predict(outputs['cls'], [None])[0]}  # noqa: E731
    graph.network.names = ('cls',)
    verdict = compare(Side(model.network, batches, read), Side(graph.network, batches, read))
    assert not verdict.passed and verdict.outputs[0].largest > 0.1


def test_a_graph_of_one_size_and_one_head_refuses_others(source: Path, tmp_path: Path):
    content = export_model(source, tmp_path, heads=['sem'])
    assert content['size'] == [64, 64] and content['dynamic'] == ['batch'] and content['heads'] == ['sem']
    model, info = read_exported(tmp_path)
    assert list(model.tasks) == ['sem'] and info['classes'] == CLASSES
    assert model.network(torch.randn(3, 3, 64, 64))['sem'].logits.shape[0] == 3
    with pytest.raises(ExportError, match='images of 64 x 64'):
        model.network(torch.randn(1, 3, 64, 72))
    with pytest.raises(ExportError, match='no padded images'):
        model.network(torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool))


def test_damaged_folders_and_unknown_heads_are_named(source: Path, exported: Path, tmp_path: Path):
    with pytest.raises(ExportError, match="no head 'seg'"):
        export_model(source, tmp_path, heads=['seg'])
    for name in ('model.onnx', 'model.json', 'export.json'):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    with open(tmp_path / 'model.onnx', 'ab') as file:
        file.write(b'x')
    with pytest.raises(ExportError, match='damaged'):
        vitdense.load(tmp_path)
    (tmp_path / 'model.json').unlink()
    with pytest.raises(ExportError, match='damaged') as caught:
        vitdense.load(tmp_path)
    assert caught.value.fix == 'export it again'


def test_transforms_decide_whether_there_is_one_size():
    assert fixed_size(RESIZE) == (64, 64)
    assert (
        fixed_size([{'type': 'vitdense.data.transforms.common.ResizeShortSide', 'size': 64, 'max_size': 200}]) is None
    )


def test_predictions_are_counted_by_kind():
    labels = torch.tensor([[0, 1], [1, 1]])
    assert equal_predictions(SemanticMap(labels), SemanticMap(torch.tensor([[0, 1], [0, 1]]))) == (3, 4)
    scores = torch.tensor([0.2, 0.8])
    assert equal_predictions(ImageClass(scores), ImageClass(scores.flip(0))) == (0, 1)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 1, 1]])
    objects = Instances(boxes, torch.tensor([0.9, 0.5, 0.01]), torch.tensor([0, 1, 0]))
    turned = Instances(boxes.flip(0), objects.scores.flip(0), objects.labels.flip(0))
    assert equal_predictions(objects, turned) == (2, 2)
    assert equal_predictions(objects, objects._replace(labels=torch.tensor([0, 0, 0]))) == (1, 2)
    outside = objects._replace(boxes=torch.tensor([[5.0, 9, 8, 9], [0, 3, 0, 7], [0, 0, 0, 0]]))  # of no area
    assert equal_predictions(outside, outside) == (2, 2)


@pytest.mark.slow  # another export of all heads
def test_the_tool_prints_a_verdict_and_the_folder_runs_in_the_demo(source: Path, tmp_path: Path, capsys):
    from vitdense.tools import demo, export

    assert export.main([str(source), '--out', str(tmp_path / 'out'), '--verify', '2']) == 0
    printed = capsys.readouterr().out
    assert 'det, sem, cls in one graph of (64, 64), free: batch' in printed and 'passed' in printed
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    demo.main([str(tmp_path / 'a.png'), '--model', str(tmp_path / 'out'), '--out', str(tmp_path / 'shown')])
    assert list((tmp_path / 'shown').glob('a*'))
