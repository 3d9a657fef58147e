"""Weight files of any origin: known by content, never larger in memory than they claim to be, sets named by a key."""

import logging
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitdense.checkpoints.run import read_checkpoint
from vitdense.errors import CheckpointError
from vitdense.storage.weights import read_weights

W = {'blocks.0.weight': torch.arange(3.0), 'norm.bias': torch.ones(2)}
ADVICE = ('weights_only', 'Re-running')


def error_of(path: Path | str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert caught.value.fix and caught.value.where
    assert not any(word in str(caught.value) for word in ADVICE)
    return caught.value


@pytest.mark.parametrize('name', ['a.pth', 'a.bin', 'blob', 'a.safetensors', 'a.npz'])
@pytest.mark.parametrize('written', ['safetensors', 'torch', 'old torch'])
def test_a_file_is_known_by_its_content(tmp_path: Path, name: str, written: str) -> None:
    path = tmp_path / name
    if written == 'safetensors':
        save_file(W, path)
    else:
        with open(path, 'wb') as file:
            torch.save(W, file, _use_new_zipfile_serialization=written == 'torch')
    read = read_weights(path)
    assert read.keys() == W.keys() and all(torch.equal(read[key], W[key]) for key in W)


OTHER = {
    'header that is cut off': (struct.pack('<Q', 5000) + b'{"a":', 'cut off, or damaged'),
    'header of 2**60 bytes': (struct.pack('<Q', 2**60) + b'{"a":1}', 'claims 1152921504606846976 bytes'),
    'index of parts': (b'{"metadata": {}, "weight_map": {}}', 'index.json lists the parts'),
    'image': (b'\x89PNG\r\n\x1a\n123', 'a PNG image'),
    'gzip': (b'\x1f\x8b123', 'compressed with gzip'),
    'keras': (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    'tar': (b'a' * 257 + b'ustar' + b'0' * 300, 'tar archive'),
    'array': (b'\x93NUMPY123', 'a single NumPy array'),
    'archive that is cut off': (b'PK\x03\x04abc', 'cut off or damaged'),
    'zeros': (bytes(1000), ''),
    'words': (b'sky\nroad\n', ''),
}


@pytest.mark.parametrize('kind', OTHER)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', ''])
def test_what_is_no_weight_file_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, reason = OTHER[kind]
    path = tmp_path / f'a{suffix}'
    path.write_bytes(content)
    assert reason in error_of(path).why


def test_archives_of_other_programs_are_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'a.pt')
    assert 'TorchScript' in error_of(tmp_path / 'a.pt').why
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('weights.h5', b'')
    assert 'weights.h5' in error_of(tmp_path / 'a.zip').why
    np.savez(tmp_path / 'objects.npz', a=np.array([object()], dtype=object))
    assert 'would run code' in error_of(tmp_path / 'objects.npz').why


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe.pth')
    assert 'no regular file' in error_of(tmp_path / 'pipe.pth').why
    assert 'no regular file' in error_of('/dev/zero').why
    (tmp_path / 'dinov2-small').mkdir()
    save_file(W, tmp_path / 'dinov2-small' / 'model.safetensors')
    assert str(tmp_path / 'dinov2-small' / 'model.safetensors') in error_of(tmp_path / 'dinov2-small').fix


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: type, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def little_memory():
    """Let the process have 2 GB more than it has."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2_000_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        (torch.zeros(1, dtype=torch.float16).expand(40000, 50000), 'x is (40000, 50000), 8000000000 bytes'),
        (Call(bytearray, 3_000_000_000), 'bytearray of any size'),
        (Call(torch.FloatTensor, 3_000_000_000), 'FloatTensor of any size'),
    ],
)
def test_a_small_file_never_asks_for_much_memory(
    tmp_path: Path, little_memory: None, value: object, reason: str, new: bool
) -> None:
    torch.save({**W, 'x': value}, tmp_path / 'a.pth', _use_new_zipfile_serialization=new)
    assert reason in error_of(tmp_path / 'a.pth').why
    for content in ({'state_dict': {**W, 'x': value}}, {'state_dict': W, 'optimizer': {'state': {0: [value]}}}):
        torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / 'a.pth')


def test_a_file_that_claims_more_than_it_holds(tmp_path: Path, little_memory: None) -> None:
    thousand, many = b'M\xe8\x03', b'J' + struct.pack('<i', 2_000_000_000)  # as pickles spell them
    path = tmp_path / 'a.pth'
    torch.save({'a.b': torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    (tmp_path / 'old.pth').write_bytes(path.read_bytes().replace(thousand, many))
    assert 'claims 8000000000 bytes' in error_of(tmp_path / 'old.pth').why
    torch.save({'a.b': torch.ones(1000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / 'new.pth', 'w') as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(thousand, many))
    error_of(tmp_path / 'new.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / 'b.pth', 'w', zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(100_000_000) if name.endswith('data/0') else source.read(name))
    assert 'unpacks to 1000' in error_of(tmp_path / 'b.pth').why


KINDS = {
    'sparse': torch.eye(3).to_sparse(),
    'complex': torch.ones(2, dtype=torch.complex64),
    'meta': torch.zeros(5, device='meta'),
    'quantized': torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    'nested': torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.parametrize('kind', KINDS)
def test_tensors_that_are_no_plain_arrays_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    torch.save({**W, 'blocks.1.weight': KINDS[kind]}, tmp_path / 'a.pth')
    assert error_of(tmp_path / 'a.pth').message == f'blocks.1.weight is a {kind} tensor'
    torch.save({'state_dict': {**W, 'blocks.1.weight': KINDS[kind]}}, tmp_path / 'run.pth')
    with pytest.raises(CheckpointError, match=f'blocks.1.weight is a {kind} tensor'):
        read_checkpoint(tmp_path / 'run.pth')


def test_no_message_repeats_the_advice_of_torch_to_trust_a_file(tmp_path: Path) -> None:
    for content in (b'\x80\x02}q\x00X\x01', b'\x80\x05}q\x00', b'garbage'):
        (tmp_path / 'a.pth').write_bytes(content)
        error_of(tmp_path / 'a.pth')
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / 'a.pth')
        assert not any(word in str(caught.value) for word in ADVICE)


def other(value: float = 7.0) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in W.items()}


@pytest.mark.parametrize(
    ('content', 'printed'),
    [
        ({'net': W, 'epoch': 3}, 'read under net'),
        ({'net': W, 'epoch': torch.tensor(3)}, 'read under net'),
        ({'model': W, 'model_ema': other(), 'optimizer': {'state': {0: W}}}, 'it also holds model_ema'),
        ({'student': other(), 'teacher': W}, 'it also holds student'),
        ({'ema': {'module': W, 'updates': 3}}, 'read under ema.module'),
        ({'state_dict': {'module': W}}, ''),
        (W, ''),
    ],
)
def test_the_state_dict_that_is_read_is_logged(
    tmp_path: Path, content: dict, printed: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(content, tmp_path / 'a.pth')
    with caplog.at_level(logging.INFO, 'vitdense'):
        read = read_weights(tmp_path / 'a.pth')
    assert all(torch.equal(read[key], W[key]) for key in W)
    assert printed in caplog.text and bool(printed) == bool(caplog.text)


def test_a_key_behind_the_path_names_the_set(tmp_path: Path) -> None:
    torch.save({'net': {'student': W, 'ema': other()}, 'step': 3}, tmp_path / 'a.pth')
    error = error_of(tmp_path / 'a.pth')
    assert 'net.student (2 tensors), net.ema (2 tensors)' in error.why and 'a.pth:net.student' in error.fix
    for key, expected in {'net.student': W, 'net.ema': other()}.items():
        assert torch.equal(read_weights(f'{tmp_path}/a.pth:{key}')['norm.bias'], expected['norm.bias'])
    assert read_weights(tmp_path / 'a.pth:net.ema.blocks').keys() == {'0.weight'}
    assert "did you mean 'net.ema'" in error_of(f'{tmp_path}/a.pth:net.emma').message
    both = {
        f'{who}.{name}': value for who, state in (('student', W), ('teacher', other())) for name, value in state.items()
    }
    save_file(both, tmp_path / 'b.safetensors')
    assert torch.equal(read_weights(f'{tmp_path}/b.safetensors:student')['norm.bias'], W['norm.bias'])
    (tmp_path / 'odd:name.pth').write_bytes((tmp_path / 'b.safetensors').read_bytes())
    assert read_weights(tmp_path / 'odd:name.pth').keys() == both.keys()
    assert 'nothing is there' in error_of(tmp_path / 'none.pth:ema').why
