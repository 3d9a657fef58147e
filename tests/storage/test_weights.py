"""Weights: broken files, strict loading with a share that matched, atomic saving."""

import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from vitdense.errors import CheckpointError, DiskError
from vitdense.storage.weights import load_weights, read_weights, save_weights


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def test_reads_safetensors_and_pickles_alike_and_widens_halves(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in small().state_dict().items()} | {'count': torch.tensor(3)}
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'a.pth')
    torch.save({'epoch': 3, 'model': {'state_dict': state}}, tmp_path / 'nested.pth')
    for name in ('a.safetensors', 'a.pth', 'nested.pth'):
        read = read_weights(tmp_path / name)
        assert read.keys() == state.keys()
        assert read['count'].dtype == torch.int64
        assert read['0.weight'].dtype == torch.float32
        assert torch.equal(read['0.weight'], state['0.weight'].float())


def test_broken_files_are_checkpoint_errors_with_a_reason(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / 'whole.pth')
    save_file(small().state_dict(), tmp_path / 'whole.safetensors')
    contents = {'empty': (b'', 'empty'), 'html': (b'<!doctype html><html>', 'web page')}
    contents['lfs'] = (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git-lfs')
    contents['noise'] = (bytes(range(256)) * 4, '')
    contents['words'] = (b'sky\nroad\ncar\n', '')
    for suffix in ('pth', 'safetensors'):
        whole = (tmp_path / f'whole.{suffix}').read_bytes()
        for name, (content, reason) in (contents | {'half': (whole[: len(whole) // 2], '')}).items():
            path = tmp_path / f'{name}.{suffix}'
            path.write_bytes(content)
            with pytest.raises(CheckpointError) as caught:
                read_weights(path)
            assert reason in caught.value.why, path
            assert caught.value.fix
            assert caught.value.where == str(path)
    for path in (tmp_path / 'nothing.pth', tmp_path, tmp_path / 'model'):
        with pytest.raises(CheckpointError, match='no weight file') as caught:
            read_weights(path)
        assert ('the folder model/' in caught.value.fix) is (path.suffix == '')


def test_the_error_for_a_file_without_tensors_lists_its_keys(tmp_path: Path) -> None:
    torch.save({'epoch': 3, 'lr': 0.1}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='epoch, lr'):
        read_weights(tmp_path / 'a.pth')


class Bomb:
    def __reduce__(self):
        return os.system, ('touch marker',)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_pickle_that_runs_code_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {'model': small().state_dict(), 'x': Bomb()}
    torch.save(state, 'bomb.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        read_weights('bomb.pth')
    assert 'posix.system' in str(caught.value)
    Path('plain.pth').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        read_weights('plain.pth')
    assert not Path('marker').exists()


def test_harmless_extras_of_training_scripts_do_not_hide_the_weights(tmp_path: Path) -> None:
    extras = {'args': Namespace(lr=0.1), 'history': HistoryBuffer([1.0, 2.0], [1, 1]), 'best': np.float64(0.5)}
    torch.save({'state_dict': small().state_dict(), **extras}, tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError):  # torch alone refuses it
        torch.load(tmp_path / 'a.pth', weights_only=True)
    assert read_weights(tmp_path / 'a.pth').keys() == small().state_dict().keys()
    with pytest.raises(pickle.UnpicklingError):  # and nothing stays allowed afterwards
        torch.load(tmp_path / 'a.pth', weights_only=True)


def test_everything_fits() -> None:
    source, target = small(), small()
    coverage = load_weights(target, source.state_dict(), where='here')
    assert coverage.complete
    assert coverage.matched == coverage.total == 4 * 8 + 8 + 8 * 2 + 2
    assert torch.equal(source[0].weight, target[0].weight)


def test_one_prefix_is_stripped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    source, target = small(), small()
    state = {f'module.backbone.{name}': value for name, value in source.state_dict().items()}
    with caplog.at_level('INFO', 'vitdense'):
        coverage = load_weights(target, state | {'module.head.weight': torch.zeros(3)}, where='here')
    assert coverage.prefix == 'module.backbone.'
    assert "stripping the prefix 'module.backbone.'" in caplog.text
    assert torch.equal(source[1].bias, target[1].bias)


def test_two_prefixes_that_fit_are_ambiguous() -> None:
    state = {f'{who}.{name}': value for who in ('student', 'teacher') for name, value in small().state_dict().items()}
    with pytest.raises(CheckpointError, match='2 sets of weights'):
        load_weights(small(), state, where='here')


def test_less_than_everything_is_an_error_with_the_share_and_leaves_the_module_alone() -> None:
    target = small()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    whole = small().state_dict()
    missing = {name: value for name, value in whole.items() if name != '0.weight'}
    reshaped = whole | {'0.weight': torch.zeros(8, 5)}
    extra = whole | {'0.gamma': torch.zeros(8)}
    for state, share, reason in (
        (missing, '44.8 % of 58 parameters', '0.weight'),
        (reshaped, '44.8 % of 58 parameters', '0.weight: file (8, 5), model (8, 4)'),
        (extra, 'tensors of the file without a place: 1', '0.gamma'),
        ({'a.b': torch.zeros(1)}, '0 % of 58 parameters', '0.weight'),
        ({}, '0 % of 58 parameters', '0.weight'),
    ):
        with pytest.raises(CheckpointError) as caught:
            load_weights(target, state, where='here')
        assert share in caught.value.message
        assert reason in caught.value.why
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_whole_numbers_are_no_weights_and_nan_is_refused() -> None:
    target, whole = small(), small().state_dict()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    quantised = whole | {'0.weight': torch.ones(8, 4, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r'0.weight: file \(8, 4\) int8, model \(8, 4\) float32'):
        load_weights(target, quantised, where='here')
    for value in (float('nan'), float('inf')):
        with pytest.raises(CheckpointError, match='NaN or infinite values in 1.bias'):
            load_weights(target, whole | {'1.bias': torch.tensor([0.0, value])}, where='here')
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    large = whole | {'1.bias': torch.full((2,), 3e38)}  # finite, though its sum is not
    assert load_weights(target, large, where='here').complete


def test_partial_loads_what_fits_but_not_zero_tensors() -> None:
    target, whole = small(), small().state_dict()
    before = target[0].weight.clone()
    coverage = load_weights(target, whole | {'0.weight': torch.zeros(8, 5)}, where='here', partial=True)
    assert torch.equal(target[1].weight, whole['1.weight'])
    assert torch.equal(target[0].weight, before)
    assert coverage.matched == 26
    with pytest.raises(CheckpointError, match='0 %'):
        load_weights(target, {'other': torch.zeros(1)}, where='here', partial=True)


def test_dispensable_names_do_not_count() -> None:
    state = small().state_dict() | {'head.weight': torch.zeros(3)}
    assert load_weights(small(), state, where='here', ignore=('head.',)).ignored == ('head.weight',)


def test_saved_weights_come_back_and_leave_no_rubbish(tmp_path: Path) -> None:
    state = small().state_dict()
    state |= {'tied': state['0.weight'], 'strided': torch.arange(6.0).view(2, 3).T}
    save_weights(tmp_path / 'new' / 'a.safetensors', state)
    read = read_weights(tmp_path / 'new' / 'a.safetensors')
    assert all(torch.equal(read[name], value) for name, value in state.items())
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.safetensors']
    (tmp_path / 'b').touch()
    assert (tmp_path / 'new' / 'a.safetensors').stat().st_mode == (tmp_path / 'b').stat().st_mode  # others may read


def test_a_failed_save_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.safetensors'
    save_weights(path, {'x': torch.ones(1)})

    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(DiskError, match='disk full'):
        save_weights(path, {'x': torch.zeros(1)})
    assert read_weights(path)['x'].item() == 1
    assert [file.name for file in tmp_path.iterdir()] == ['a.safetensors']


def test_only_declared_parameters_may_be_absent() -> None:
    module = nn.ModuleDict({'old': nn.Linear(4, 8), 'gain': nn.Linear(8, 2)})
    state = {f'old.{name}': value for name, value in nn.Linear(4, 8).state_dict().items()}
    coverage = load_weights(module, state, where='test', partial=['gain'])
    assert coverage.complete
    assert coverage.matched == coverage.total == 40
    assert coverage.new == ('gain.weight', 'gain.bias')
    assert torch.equal(module['old'].weight, state['old.weight'])
    with pytest.raises(CheckpointError, match='missing in the file: old.bias'):
        load_weights(module, {'old.weight': state['old.weight']}, where='test', partial=['gain'])
