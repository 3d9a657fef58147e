"""Graphs for OpenVINO and with weights in float16, made of an ONNX graph."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitdense
from tools import export
from vitdense.commands.test import one_by_one
from vitdense.errors import ConfigError, DataError, ExportError, ResourceError
from vitdense.export.folder import INFO, complete, quantize_folder, read_exported, verify
from vitdense.export.runtimes import openvino_config
from vitdense.export.verify import STAGES, TOLERANCES, Agreement, Verdict, equal_predictions

pytest.importorskip('onnxruntime')


def converted(exported: Path, out: Path, **options: object) -> Path:
    """Return a copy of an exported folder in another format."""
    shutil.copytree(exported, out)
    complete(out, json.loads((out / INFO).read_text()), **options)
    return out


@pytest.fixture(scope='module')
def openvino(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip('openvino')
    return converted(exported, tmp_path_factory.mktemp('openvino') / 'folder', runtime='openvino')


def test_an_openvino_graph_passes_and_is_loaded_as_any_model(source: Path, openvino: Path, images: list[torch.Tensor]):
    assert sorted(path.name for path in openvino.iterdir()) == ['export.json', 'model.bin', 'model.json', 'model.xml']
    verdict = verify(source, openvino, images)
    assert verdict.passed and verdict.level == 'exact' and len(verdict.outputs) == 4
    theirs, ours = (vitdense.load(folder, device='cpu', amp='off') for folder in (source, openvino))
    for expected, actual in zip(theirs(images), ours(images), strict=True):
        equal, total = equal_predictions(expected['det'], actual['det'])
        assert equal == total > 0 and (expected['sem'].labels == actual['sem'].labels).all()


def test_threads_share_an_openvino_graph(openvino: Path):
    model, _ = read_exported(openvino)
    inputs = [torch.randn(1, 3, 64, 64) for _ in range(8)]
    alone = [model.network(imgs)['sem'].logits for imgs in inputs]
    actual: list[torch.Tensor | None] = [None] * len(inputs)

    def work(first: int) -> None:
        for row in range(first, len(inputs), 2):
            actual[row] = model.network(inputs[row])['sem'].logits

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, other) for each, other in zip(alone, actual, strict=True))


def test_a_changed_weight_file_is_damage(openvino: Path, tmp_path: Path):
    shutil.copytree(openvino, tmp_path / 'copy')
    with open(tmp_path / 'copy/model.bin', 'r+b') as file:
        file.write(b'xxxx')
    with pytest.raises(ExportError, match=r'model\.bin is not the file'):
        vitdense.load(tmp_path / 'copy')


def test_openvino_computes_in_bfloat16_where_it_is_chosen():
    assert openvino_config()['INFERENCE_PRECISION_HINT'] == 'f32'  # its own default depends on the processor
    assert openvino_config('float16')['INFERENCE_PRECISION_HINT'] == 'f32'
    assert openvino_config('bfloat16')['INFERENCE_PRECISION_HINT'] == 'bf16'


def test_an_int8_graph_is_smaller_and_judged_coarsely(
    source: Path, openvino: Path, images: list[torch.Tensor], tmp_path: Path
):
    pytest.importorskip('nncf')
    shutil.copytree(openvino, tmp_path / 'int8')
    content = quantize_folder(tmp_path / 'int8', images)
    assert content['precision'] == 'int8' and set(content['int8_seconds']) == {'float32', 'int8'}
    assert (tmp_path / 'int8/model.bin').stat().st_size < 0.7 * (openvino / 'model.bin').stat().st_size
    verdict = verify(source, tmp_path / 'int8', images)
    assert verdict.level == 'coarse' and max(output.largest / output.scale for output in verdict.outputs) > 1e-3
    with pytest.raises(ExportError, match='in int8'):
        quantize_folder(tmp_path / 'int8', images)


def test_weights_in_float16_take_half_the_file_and_are_judged_by_predictions(
    source: Path, exported: Path, images: list[torch.Tensor], tmp_path: Path
):
    half = converted(exported, tmp_path / 'half', precision='float16')
    large, small = ((folder / 'model.onnx').stat().st_size for folder in (exported, half))
    weights = sum(value.numel() for value in vitdense.load(source, device='cpu').model.network.parameters())
    assert large - small > 0.9 * 2 * weights
    verdict = verify(source, half, images)
    assert verdict.level == 'close' and all(output.tolerance is None for output in verdict.outputs)
    assert max(output.largest / output.scale for output in verdict.outputs) > 1e-5
    assert verdict.passed == all(head.share >= TOLERANCES['close'].share for head in verdict.heads)


def test_a_runtime_that_is_not_installed_is_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__('sys').modules, 'openvino', None)
    with pytest.raises(ResourceError, match=r'vitdense\[openvino\]'):
        converted(exported, tmp_path / 'out', runtime='openvino')


@pytest.mark.parametrize('options', [['--int8'], ['--int8', '--format', 'openvino'], ['--bf16'], ['--half', '--int8']])
def test_options_that_do_not_go_together_are_refused(options: list[str]):
    with pytest.raises(ConfigError, match='export.py'):
        export.main(['model', '--out', 'out', *options])


@pytest.mark.parametrize(
    ('int8', 'passed', 'judged', 'words'),
    [
        (0.05, True, True, '(2.00 x), worth it'),
        (0.05, True, False, 'not judged'),
        (0.095, True, True, 'not worth it: no faster'),
        (0.2, False, True, 'not worth it: no faster and predictions change'),
    ],
)
def test_int8_has_to_be_faster_and_right(capsys, int8: float, passed: bool, judged: bool, words: str):
    export.show_worth({'float32': 0.1, 'int8': int8}, passed, judged=judged)
    assert words in ' '.join(capsys.readouterr().out.split())


def test_a_graph_that_resizes_is_tested_without_transforms():
    section = {'batch_size': 4, 'dataset': {'type': 'A', 'transforms': ['resize']}}
    assert one_by_one(section) == section | {'batch_size': 1}
    assert one_by_one({'a': section}, transforms=False)['a']['dataset'] == {'type': 'A', 'transforms': ()}


def test_a_torch_program_passes_and_is_read_only_where_it_is_trusted(
    source: Path, images: list[torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
):
    for row, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f'{row}.png')
    (tmp_path / 'empty.jpg').touch()
    out, words = tmp_path / 'out', ['--format', 'torch-export', '--dynamic', 'batch,size']
    assert export.main([str(source), '--out', str(out), *words, '--verify', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert 'postprocess' in printed and 'NO' not in printed and 'running both on 3 images' in printed
    assert sorted(path.name for path in out.iterdir()) == ['export.json', 'model.json', 'model.pt2']
    seconds = json.loads((out / INFO).read_text())['verdict']['seconds']
    assert {name: list(stages) for name, stages in seconds.items()} == dict.fromkeys(['torch', 'graph'], list(STAGES))
    with pytest.raises(ExportError, match='runs code when it is read'):
        vitdense.load(out)
    theirs = vitdense.load(source, device='cpu', amp='off')
    ours = vitdense.load(out, device='cpu', amp='bf16', trust=True)  # the graph computes in its own precision
    for expected, actual in zip(theirs(images), ours(images), strict=True):
        equal, total = equal_predictions(expected['det'], actual['det'])
        assert equal == total > 0 and (expected['sem'].labels == actual['sem'].labels).all()


def test_what_is_missing_is_named_before_anything_is_exported(source: Path, tmp_path: Path, monkeypatch):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/empty.jpg').touch()
    words = [str(source), '--out', str(tmp_path / 'out'), '--format']
    with pytest.raises(DataError, match='no images in .*photos') as caught:
        export.main([*words, 'torch-export', '--verify', str(tmp_path / 'photos')])
    assert 'empty.jpg' in caught.value.why
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ResourceError, match='openvino is not installed'):
        export.main([*words, 'openvino'])
    assert not (tmp_path / 'out').exists()


def test_a_verdict_says_how_many_have_to_be_equal(capsys: pytest.CaptureFixture):
    seconds = dict.fromkeys(('torch', 'graph'), dict.fromkeys(STAGES, 0.1))
    export.show(Verdict(2, [], [Agreement('det', 'objects', 23, 24, 0.97)], seconds, 'close'))
    printed = capsys.readouterr().out
    assert '23 of 24 objects equal (95.83 %), and 97 % have to be (few: verify with more images)' in printed
    assert 'NOT passed: beyond the tolerance' in printed
