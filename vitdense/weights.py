"""Weights on disk and in modules: read files that may be broken, load strictly, save atomically.

Reading never runs code: safetensors, or pickles through `weights_only`. Loading says how much matched, and refuses
less than everything unless told otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdense.errors import CheckpointError, DiskError

logger = logging.getLogger('vitdense')

State = dict[str, Tensor]

_WRAPPERS = ('state_dict', 'model', 'module', 'teacher', 'encoder')  # keys under which checkpoints keep their weights
# Harmless things that training scripts pickle beside the weights. They are read as empty shells, never as themselves.
_INERT = frozenset(
    {
        '_codecs.encode',
        'argparse.Namespace',
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
_safe_globals_lock = threading.Lock()  # torch's list of allowed globals belongs to the whole process


class Coverage(NamedTuple):
    """How a set of weights fits a module. Counts are of numbers (elements of tensors), not of tensors."""

    matched: int  # numbers that found their place
    total: int  # numbers the module holds
    prefix: str = ''  # what was stripped from the names in the file
    missing: tuple[str, ...] = ()  # names of the module that the file does not have
    mismatched: tuple[str, ...] = ()  # 'name: file (...), model (...)'
    unexpected: tuple[str, ...] = ()  # names of the file that the module has no place for
    ignored: tuple[str, ...] = ()  # the same, but known to be dispensable (classifier heads)
    new: tuple[str, ...] = ()  # names of the module that were declared to be new, and are not in the file

    @property
    def complete(self) -> bool:
        """Whether everything fits and nothing is left over."""
        return not (self.missing or self.mismatched or self.unexpected)

    def __str__(self) -> str:
        percent = 100 * self.matched / max(self.total, 1)
        shown = f'{math.floor(percent * 10) / 10:g}'  # 99.99 % must not read as 100 %
        return f'{shown} % of {_count(self.total)} parameters matched'


class _Shell:
    """Stands in for an object that a checkpoint carries and nobody needs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(path: str | Path) -> State:
    """Return the tensors of a safetensors or PyTorch file, by name, half precision widened to float32.

    Nested checkpoints (`{'state_dict': ...}`, `model`, `module`, `teacher`, `encoder`) are opened; what is not a
    tensor is left out. No code of the file ever runs.

    Raises CheckpointError for a file that is missing, empty, cut off, not a weight file at all, or that would need to
    run code to be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        folder = path.is_dir() or not path.suffix
        raise CheckpointError(
            f"no weight file at '{path}'",
            where=str(path),
            why='it is a folder' if path.is_dir() else 'nothing is there',
            fix='give the path of a .safetensors or .pth file'
            + (', or, where a model is asked for, of the folder model/ that a finished run leaves' if folder else ''),
        )
    try:
        raw = load_file(path) if path.suffix == '.safetensors' else _read_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # foreign bytes fail in any way, even inside the unpickler
        raise CheckpointError(
            f"cannot read '{path.name}'",
            where=str(path),
            why=_diagnose(path) or f'{type(error).__name__}: {_first_line(error)}',
            fix='download or copy the file again, and compare its size and sha256 with the source',
        ) from None
    state = open_checkpoint(raw)
    if not state:
        content = f'the keys {_some([*map(str, raw)])}' if isinstance(raw, Mapping) else f'a {type(raw).__name__}'
        raise CheckpointError(
            f"'{path.name}' holds no weights",
            where=str(path),
            why=f'it was read, but has no tensors by name; it holds {content}',
            fix=f'give a state dict, plain or under one of the keys {", ".join(_WRAPPERS)}',
        )
    return state


def open_checkpoint(raw: Any) -> State:
    """Return the named tensors inside a checkpoint, however deep, half precision widened to float32."""
    for _ in _WRAPPERS:
        inner = next((raw[key] for key in _WRAPPERS if isinstance(raw, Mapping) and key in raw), None)
        if not isinstance(inner, Mapping):
            break
        raw = inner
    if not isinstance(raw, Mapping):
        return {}
    return {str(name): _widen(value) for name, value in raw.items() if isinstance(value, Tensor)}


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    partial: bool | Sequence[str] = False,
    convert: Callable[[State], State] | None = None,
    ignore: Sequence[str] = (),
) -> Coverage:
    """Copy `state` into `module`, all of it or not at all.

    One prefix (`module.`, `backbone.`, ...) is stripped from the names only when exactly one makes everything fit;
    `convert` then translates names and shapes. Leftover names that begin with one of `ignore` do not count. `where`
    names the source in messages. `partial` copies what fits and leaves the rest as it is.

    Raises CheckpointError with the share that matched and the reasons when anything is missing, has another shape or
    has no place; and when nothing fits at all.
    """
    wanted = module.state_dict()
    new = set() if isinstance(partial, bool) else set(partial)
    trials = []
    for prefix in ('', *_prefixes(state, wanted)):
        trial = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        trial = _converted(trial, convert)
        trials.append((_cover(wanted, trial, prefix, tuple(ignore), new), trial))
        if trials[0][0].complete:
            break  # the names fit as they are: no guessing
    complete = [trial for trial in trials if trial[0].complete]
    if len(complete) > 1:
        raise CheckpointError(
            f'the file holds {len(complete)} sets of weights that fit',
            where=where,
            why=f'all of them match, after the prefixes {", ".join(repr(fit.prefix) for fit, _ in complete)}',
            fix='save the set you mean into a file of its own',
        )
    coverage, trial = (complete or [max(trials, key=lambda trial: trial[0].matched)])[0]
    if not coverage.matched or not (coverage.complete or partial is True):
        _refuse(coverage, where)
    module.load_state_dict({name: trial[name] for name in wanted if _fits(trial.get(name), wanted[name])}, strict=False)
    _report(coverage, where)
    return coverage


def save_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `state` as a safetensors file that appears under its name only when it is whole.

    Raises DiskError when the disk is full or refuses; what stood there before is kept.
    """
    path = Path(path)
    temporary = path.with_name(f'{path.name}.tmp.{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(_unshared(state), temporary, dict(metadata or {}))
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error)
        raise DiskError(
            f"could not write '{path.name}'",
            where=str(path),
            why='the disk is full' if full else _first_line(error),
            fix='free some space or choose another folder; the file that stood there before is untouched',
        ) from error


def _read_pickle(path: Path) -> Any:
    """Read a PyTorch file; harmless extras become empty shells, anything else that needs code is refused."""
    shells: set[str] = set()
    while True:
        try:
            with _safe_globals_lock, torch.serialization.safe_globals([(_Shell, name) for name in shells]):
                return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            wanted = _wanted_globals(path, error) - shells
            refused = sorted(name for name in wanted if name not in _INERT and not name.startswith(_INERT_PREFIX))
            if refused:
                raise CheckpointError(
                    f"refused to read '{path.name}': it would run code",
                    where=str(path),
                    why=f'the pickle asks for {", ".join(refused)}',
                    fix='get the weights as .safetensors, or save a plain state dict (names and tensors only) again',
                ) from None
            if not wanted:
                raise
            shells |= wanted


def _wanted_globals(path: Path, error: pickle.UnpicklingError) -> set[str]:
    """Return what the pickle asks for beyond tensors: all of it for zip files, the first thing for older ones."""
    with contextlib.suppress(RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return set(re.findall(r'GLOBAL (\w[\w.]*\w)', str(error)))


def _diagnose(path: Path) -> str:
    """Name the usual reasons for which a file is not what its name says."""
    with open(path, 'rb') as file:
        head = file.read(64).lstrip()
    if path.stat().st_size == 0:
        return 'the file is empty'
    if head.startswith(b'<'):
        return 'it is a web page, not weights: the download asked for a login, or the address was wrong'
    if head.startswith(b'version https://git-lfs'):
        return "it is a git-lfs pointer: the real file was never fetched ('git lfs pull')"
    return ''


def _prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes that make most names fit, best first."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split('.')
        for cut in range(1, len(parts)):
            if '.'.join(parts[cut:]) in wanted:
                counts['.'.join(parts[:cut]) + '.'] += 1
    return [prefix for prefix, _ in counts.most_common(4)]


def _converted(trial: State, convert: Callable[[State], State] | None) -> State:
    try:
        return convert(trial) if convert else trial
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError):
        return trial  # weights of another model: the comparison of names and shapes says so better


def _cover(wanted: State, trial: State, prefix: str, ignore: tuple[str, ...], new: set[str]) -> Coverage:
    absent = [name for name in wanted if name not in trial]
    declared = tuple(name for name in absent if new & set(name.split('.')))
    leftover = [name for name in trial if name not in wanted]
    mismatched = (name for name in trial if name in wanted and trial[name].shape != wanted[name].shape)
    return Coverage(
        matched=sum(value.numel() for name, value in wanted.items() if _fits(trial.get(name), value)),
        total=sum(value.numel() for name, value in wanted.items() if name not in declared),
        prefix=prefix,
        missing=tuple(name for name in absent if name not in declared),
        mismatched=tuple(
            f'{name}: file {tuple(trial[name].shape)}, model {tuple(wanted[name].shape)}' for name in mismatched
        ),
        unexpected=tuple(name for name in leftover if not name.startswith(ignore)),
        ignored=tuple(name for name in leftover if name.startswith(ignore)),
        new=declared,
    )


def _fits(value: Tensor | None, place: Tensor) -> bool:
    return value is not None and value.shape == place.shape


def _refuse(coverage: Coverage, where: str) -> None:
    left_over = f'; tensors of the file without a place: {len(coverage.unexpected)}' if coverage.unexpected else ''
    reasons = {
        'missing in the file': coverage.missing,
        'another shape': coverage.mismatched,
        'no place in the model': coverage.unexpected,
    }
    raise CheckpointError(
        f'{coverage}{left_over}',
        where=where,
        why='\n'.join(f'{label}: {_some(names)}' for label, names in reasons.items() if names),
        fix='load them into the model they were made for; a backbone that may take a part of its pretrained weights\n'
        'says so with partial_weights=True',
    )


def _report(coverage: Coverage, where: str) -> None:
    stripped = f" after stripping the prefix '{coverage.prefix}'" if coverage.prefix else ''
    logger.log(logging.INFO if coverage.complete else logging.WARNING, '%s: %s%s', where, coverage, stripped)
    if coverage.ignored:
        logger.info('%s: not used: %s', where, _some(coverage.ignored))
    if coverage.missing or coverage.mismatched:
        logger.warning('%s: kept as initialised: %s', where, _some(coverage.missing + coverage.mismatched))
    if coverage.unexpected:
        logger.warning('%s: left out, no place: %s', where, _some(coverage.unexpected))


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _unshared(state: Mapping[str, Tensor]) -> State:
    """Return contiguous CPU copies; safetensors refuses two names of one memory."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        result[name] = value.clone() if address in seen else value
        seen.add(address)
    return result


def _sync_folder(folder: Path) -> None:
    if os.name != 'posix':
        return  # other systems cannot open a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _count(number: int) -> str:
    for size, unit in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if number >= size:
            return f'{number / size:.1f}{unit}'
    return str(number)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [''])[0][:200]
