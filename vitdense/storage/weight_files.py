"""Safe reading of weight files: the format is detected by content, and sizes are checked before allocation.

Safetensors, PyTorch's zip archives and older pickles, and NumPy archives of JAX weights are read. No code of a file
ever runs.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vitdense.errors import CheckpointError, cause_of, some
from vitdense.storage.trust import are_checkpoints_trusted
from vitdense.storage.weight_sets import WRAPPERS, State, find_set, split_key, to_float32

logger = logging.getLogger('vitdense')
SLACK = 64_000_000  # bytes that a file of any size may allocate
GROWTH = 4  # times the size of its file that weights may take: halves are to_float32, shared tensors counted each time
IN_FOLDER = ('model.safetensors', 'pytorch_model.bin')  # weights in a folder of transformers
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as the format defines it
AGAIN = 'download or copy the file again, and compare its size and sha256 with the source'
OTHER = 'give the path of a .safetensors or .pth file with the weights'

# Harmless globals in pickles of training scripts, which are replaced by empty placeholders.
_INERT = frozenset(
    {
        '_codecs.encode',
        'argparse.Namespace',
        'types.SimpleNamespace',
        'builtins.getattr',
        'mmengine.logging.history_buffer.HistoryBuffer',
        'numpy._core.multiarray._reconstruct',
        'numpy._core.multiarray.scalar',
        'numpy.core.multiarray._reconstruct',
        'numpy.core.multiarray.scalar',
        'numpy.dtype',
        'numpy.ndarray',
    }
)
_INERT_PREFIX = 'numpy.dtypes.'
_KINDS = '|'.join(sorted({kind.__name__ for kind in torch._tensor_classes}))
_SIZED = re.compile(
    rf'(?:__builtin__|builtins)\sbytearray\b|torch[\w.]*\s(?:{_KINDS})\b'
)  # made with a number of elements
_MAGIC = {  # first bytes of files that are mistaken for weights
    b'\x89HDF': 'an HDF5 file, as Keras writes it',
    b'GGUF': 'a GGUF file of a language model',
    b'\x93NUMPY': 'a single NumPy array',
    b'\x1f\x8b': 'compressed with gzip: unpack it',
    b'BZh': 'compressed with bzip2: unpack it',
    b'7z\xbc\xaf': 'a 7z archive: unpack it',
    b'\xff\xd8\xff': 'a JPEG image',
    b'\x89PNG': 'a PNG image',
    b'%PDF': 'a PDF document',
    b'<': 'a web page, not weights: the download asked for a login, or the address was wrong',
    b'version https://git-lfs': "a git-lfs pointer: the real file was never fetched ('git lfs pull')",
}
_REMEDY = {'sparse': 'value.to_dense()', 'quantized': 'value.dequantize()', 'complex': 'torch.view_as_real(value)'}
_safe_globals_lock = threading.Lock()  # torch's list of allowed globals belongs to the whole process


class Placeholder:
    """Stands for a pickled object of a harmless type, of which only the pickled attributes are kept."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class UnreadableFile(Exception):
    """Reason why a file cannot be read, and a fix."""

    def __init__(self, why: str, fix: str = AGAIN) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


def read_weights(path: str | Path) -> State:
    """Return the tensors of a weight file, by name, half precision as float32.

    Nested checkpoints are opened by `find_set`; what is not a tensor is left out. A path `FILE:KEY` names the set
    to take (`file.pth:model_ema`, `file.pth:model.student`), or what the names to take begin with; a folder of
    transformers stands for its weight file. No code of the file ever runs.

    Raises CheckpointError for a file that is missing, empty, cut off, not a weight file at all, that needs far more
    memory than its size, whose tensors are not plain arrays, or that would need to run code to be read.
    """
    path, key = split_key(weight_file(path))
    raw = read_content(path)
    state = find_set(raw, key=key, where=str(path))
    if not state:
        content = f'the keys {some([*map(str, raw)])}' if isinstance(raw, Mapping) else f'a {type(raw).__name__}'
        raise CheckpointError(
            f"'{path.name}' holds no weights",
            where=str(path),
            why=f'it was read, but has no tensors by name; it holds {content}',
            fix=f'give a state dict, plain or under one of the keys {", ".join(WRAPPERS)}',
        )
    check_tensors(state, path)
    return to_float32(state)


def read_content(path: Path) -> Any:
    """Return what a weight file holds, nested as stored, with `Placeholder` for objects. Raises CheckpointError."""
    check_regular(path)
    return _read(path)


def weight_file(path: str | Path) -> str | Path:
    """Return the weight file of a folder of transformers (`config.json` and `model.safetensors`); else `path`."""
    folder = Path(path).expanduser()
    files = [folder / name for name in IN_FOLDER if (folder / name).is_file()]
    return files[0] if files and (folder / 'config.json').is_file() else path


def check_regular(path: Path) -> None:
    """Raise CheckpointError unless `path` is a regular file: pipes and devices can be endless."""
    if path.is_file():
        return
    inside = [path / name for name in IN_FOLDER if (path / name).is_file()]
    folder = path.is_dir() or not path.suffix
    fix = 'give the path of a .safetensors or .pth file'
    if folder:
        fix += ', or, where a model is asked for, of the folder model/ of a finished run or a name of `vitdense models`'
    raise CheckpointError(
        f"no weight file at '{path}'",
        where=str(path),
        why='it is a folder' if path.is_dir() else 'it is no regular file' if path.exists() else 'nothing is there',
        fix=f'give the path of the file in it: {inside[0]}' if inside and not (path / 'model.json').exists() else fix,
    )


def _read(path: Path) -> Any:
    """Return the content of a weight file on the CPU, nested as stored. Raises CheckpointError."""
    try:
        kind = format_of(path)
        if kind == 'safetensors':
            return load_file(path)
        return _read_arrays(path) if kind == 'npz' else _read_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # foreign bytes fail in any way, even inside the unpickler
        raise CheckpointError(
            f"cannot read '{path.name}'",
            where=str(path),
            why=why_unreadable(error),
            fix=error.fix if isinstance(error, UnreadableFile) else AGAIN,
        ) from None


def why_unreadable(error: Exception) -> str:
    """Return the reason of a read error, without torch's advice to trust the file."""
    if isinstance(error, UnreadableFile):
        return error.why
    if isinstance(error, pickle.UnpicklingError | EOFError | LookupError) or 'weights_only' in str(error):
        return 'it is damaged, or no weight file: its bytes are no PyTorch pickle'
    return cause_of(error)


def format_of(path: Path) -> str:
    """Return 'safetensors', 'zip' (PyTorch), 'npz' or 'pickle', by the content of a file. Raises UnreadableFile."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        head = file.read(512)
    if not size:
        raise UnreadableFile('the file is empty')
    if head[8:9] == b'{':
        length = int.from_bytes(head[:8], 'little')
        if length > min(size - 8, MAX_HEADER):
            raise UnreadableFile(f'its header claims {length} bytes and the file has {size}: it is cut off, or damaged')
        return 'safetensors'
    name = next((name for magic, name in _MAGIC.items() if head.lstrip().startswith(magic)), '')
    if name or head[257:262] == b'ustar':
        raise UnreadableFile(f'it is {name or "a tar archive: unpack it"}', OTHER)
    if head.lstrip().startswith(b'{'):
        raise UnreadableFile(
            'it is a JSON file, which holds no weights (an index.json lists the parts of weights)',
            'give the weight file itself; parts are joined by reading each with safetensors.torch.load_file and\n'
            'writing all of them with safetensors.torch.save_file',
        )
    if head.startswith(b'PK'):
        return _kind_of_archive(path, size)
    if path.suffix == '.safetensors' and not head.startswith(b'\x80'):
        raise UnreadableFile('it is no safetensors file: it does not begin with the length of a header')
    return 'pickle'


def _kind_of_archive(path: Path, size: int) -> str:
    """Return 'npz' or 'zip'. Raises UnreadableFile for other archives, and for those that unpack to far more."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
    except zipfile.BadZipFile:
        raise UnreadableFile('the archive is cut off or damaged') from None
    names = [file.filename.rpartition('/')[2] for file in files]
    total = sum(file.file_size for file in files)
    if total > GROWTH * size + SLACK:
        raise UnreadableFile(f'the archive has {size} bytes and unpacks to {total}')
    if 'constants.pkl' in names:
        raise UnreadableFile(
            'it is a TorchScript program (torch.jit.save)',
            'load it once with torch.jit.load(PATH), and save its state_dict() with torch.save',
        )
    if 'data.pkl' in names:
        return 'zip'
    if any(name.endswith('.npy') for name in names):
        return 'npz'
    raise UnreadableFile(f'it is an archive of other files: {some(names)}', OTHER)


def _read_arrays(path: Path) -> State:
    """Return the arrays of a NumPy archive. Raises UnreadableFile for arrays of objects: they would run code."""
    with np.load(path, allow_pickle=False) as archive:
        try:
            arrays = {name: archive[name] for name in archive.files}
        except ValueError:
            raise UnreadableFile('it is a NumPy archive with pickled objects, which would run code', OTHER) from None
    return {name: torch.from_numpy(value) for name, value in arrays.items() if value.dtype.kind in 'fiu'}


def load_pickle(path: Path) -> Any:
    """Return the content of a torch.save file, without running code. Raises UnreadableFile, or torch's errors."""
    if format_of(path) == 'zip':
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.rpartition('/')[2] == 'data.pkl')
            _check_sized(archive.read(name).decode('latin-1'))
    else:
        _check_old_format(path)
    with open(path, 'rb') as file:  # by name, torch would go by the suffix
        return torch.load(file, map_location='cpu', weights_only=True)


def _check_sized(names: str) -> None:
    match = _SIZED.search(names)
    if match:
        raise UnreadableFile(
            f'its pickle makes a {match[0].split()[-1]} of any size',
            'save a plain state dict (names and tensors only) again, or as .safetensors',
        )


def _check_old_format(path: Path) -> None:
    """Raise UnreadableFile when a file of PyTorch's old format claims more numbers than it has bytes for."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and seldom needed

    with open(path, 'rb') as file, contextlib.suppress(ValueError):  # a truncated file: torch raises
        for _ in range(4):  # magic number, version, system, content
            operations = pickletools.genops(file)
            _check_sized('\n'.join(str(argument) for code, argument, _ in operations if code.name == 'GLOBAL'))
    try:
        with open(path, 'rb') as file, FakeTensorMode():
            leaves = tree_leaves(torch.load(file, weights_only=True))
            claimed = [leaf.untyped_storage().nbytes() for leaf in leaves if isinstance(leaf, Tensor)]
    except RuntimeError as error:  # of fake tensors: NotImplementedError is a subclass
        why = f'it is damaged, or holds sparse, nested or quantized tensors: {why_unreadable(error)}'
        raise UnreadableFile(why, 'save a plain state dict (names and plain tensors only) again') from None
    size = path.stat().st_size
    if max(claimed, default=0) > size:
        raise UnreadableFile(f'a tensor claims {max(claimed)} bytes, and the file has {size}')


def _read_pickle(path: Path) -> Any:
    """Read a PyTorch file; harmless globals become placeholders, others raise CheckpointError."""
    shells: set[str] = set()
    while True:
        try:
            with _safe_globals_lock, torch.serialization.safe_globals([(Placeholder, name) for name in shells]):
                return load_pickle(path)
        except pickle.UnpicklingError as error:
            wanted = _wanted_globals(path, error) - shells
            unsafe = sorted(name for name in wanted if name not in _INERT and not name.startswith(_INERT_PREFIX))
            if unsafe and are_checkpoints_trusted():
                logger.warning('%s runs code when it is read (--trust-checkpoint): %s', path, ', '.join(unsafe))
                with open(path, 'rb') as file:
                    return torch.load(file, map_location='cpu', weights_only=False)
            if unsafe:
                raise CheckpointError(
                    f"refused to read '{path.name}': it would run code",
                    where=str(path),
                    why=f'the pickle asks for {some(unsafe)}',
                    fix='get the weights as .safetensors, or save a plain state dict (names and tensors only) again;\n'
                    '--trust-checkpoint runs that code: only for a file of your own',
                ) from None
            if not wanted:
                raise
            shells |= wanted


def _wanted_globals(path: Path, error: pickle.UnpicklingError) -> set[str]:
    """Return the globals that the pickle needs beyond tensors: all of a zip file, the first of an older one."""
    with contextlib.suppress(RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return set(re.findall(r'GLOBAL (\w[\w.]*\w)', str(error)))


def check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError for tensors that are no plain arrays of real numbers, or larger than their file."""
    for name, value in state.items():
        kind = _odd_kind(value)
        if kind:
            raise CheckpointError(
                f'{name} is a {kind} tensor',
                where=str(path),
                why='weights are plain arrays of real numbers; another kind would be cut, filled up or left out',
                fix=f'save the file again with {_REMEDY.get(kind, "a plain tensor")} in its place, or without it',
            )
    sizes = {name: value.numel() * max(value.element_size(), 4) for name, value in state.items()}
    size = path.stat().st_size
    if sum(sizes.values()) > GROWTH * size + SLACK:
        name = max(sizes, key=sizes.get)
        raise CheckpointError(
            'the tensors are larger than their file',
            where=str(path),
            why=f'{name} is {tuple(state[name].shape)}, {sizes[name]} bytes, in a file of {size}: it repeats a few',
            fix='get the weights from another source; tensors that repeat numbers are saved whole by .contiguous()',
        )


def _odd_kind(value: Tensor) -> str:
    """Return the kind of a tensor that is no plain array of real numbers, else ''."""
    if value.is_nested:
        return 'nested'
    if value.layout != torch.strided:
        return 'sparse'
    if value.is_meta:
        return 'meta'
    return 'quantized' if value.is_quantized else 'complex' if value.is_complex() else ''
