"""Checkpoints of a training run: written atomically, with a checksum, and loaded without running code.

A checkpoint is a dict of tensors and plain Python, written with torch.save:

* `format` 1, `version` of vitdense, `config` (text), `seed`, `amp`, `batch_size` (of each process), `world_size`,
  `accumulative_counts`
* `step` (steps done), `samples_seen` (by all ranks), `validation_pending`
* `parameter_groups`: the names of the parameters in each group of the optimizer
* `classes` ({field: names}), `metrics` of the last validation, `best`
* `state_dict`: the weights for inference (the EMA weights, if any); `training_state_dict`: those of training, where
  they differ; `omitted_weights`: weights of the pretrained file that are in neither
* `optimizer`, `scaler`, `skipped_steps` and the state of hooks; a checkpoint of the best weights has none of them.

Beside `name.pth` lies `name.pth.sha256`. A file is written under a temporary name, flushed to disk, and only then
renamed; older ones are deleted after that. While a file is replaced, its checksum file holds both sums.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vitdense.errors import CheckpointError, DiskError, FullDiskError, some
from vitdense.storage.atomic import atomic_path, disk_problem, format_bytes, free_bytes, sha256_of, write_text
from vitdense.storage.weight_files import check_tensors, load_pickle, why_unreadable

logger = logging.getLogger('vitdense')
POINTER = 'last_checkpoint'


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` at `path`, atomically, with its checksum.

    Raises DiskError (FullDiskError for a full disk); then `path` is as it was before.
    """
    size = bytes_of(content)
    sums = path.with_name(f'{path.name}.sha256')
    earlier = sums.read_text().split()[:1] if sums.exists() and path.exists() else []
    digests: list[str] = []

    def write_checksums(temporary: Path) -> None:
        digests.append(sha256_of(temporary))
        write_text(sums, '\n'.join(digests + earlier) + '\n')

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if free_bytes(path.parent) < size:
            raise OSError(errno.ENOSPC, 'there is not enough room')
        with atomic_path(path, before_replace=write_checksums) as temporary, open(temporary, 'wb') as file:
            torch.save(dict(content), file)
        if earlier:
            write_text(sums, digests[0] + '\n')
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = disk_problem(cause) == 'disk full'
        raise (FullDiskError if full else DiskError)(
            f'checkpoint of {format_bytes(size)} not written (free {format_bytes(free_bytes(path.parent))})',
            where=str(path),
            why=cause.strerror or str(cause),
            fix='make room on the disk, then --resume; or lower checkpoint.keep'
            if full
            else 'see that the work directory can be written to, then --resume',
        ) from error


def bytes_of(content: Any) -> int:
    """Return about how many bytes the tensors of `content` take."""
    return sum(leaf.nbytes if isinstance(leaf, Tensor) else 64 for leaf in tree_leaves(content))


def checksum_matches(path: Path) -> bool | None:
    """Return whether the file matches its checksum; None when there is none."""
    sums = path.with_name(f'{path.name}.sha256')
    try:
        return sha256_of(path) in sums.read_text(errors='replace').split() if sums.is_file() else None
    except OSError as error:
        raise CheckpointError(
            f"'{path.name}' cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            fix='check the permissions of the file and the disk, or use another checkpoint of the run',
        ) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint of a run, on the CPU, without running code. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint '{path.name}'",
            where=str(path),
            why='there is no such file',
            fix='check the path; a work directory can be given to --resume too',
        )
    if checksum_matches(path) is False:
        raise CheckpointError(
            'checksum mismatch',
            where=str(path),
            why='the file is not the one that was written: a damaged disk or copy',
            fix='use another checkpoint of the run, or copy the file again',
        )
    try:
        content = load_pickle(path)
        tensors = {name.removeprefix('state_dict.'): value for name, value in _tensors(content)}
    except Exception as error:  # foreign bytes fail in any way, even inside the unpickler
        raise CheckpointError(
            f"'{path.name}' cannot be read",
            where=str(path),
            why=_why_unreadable(path, error),
            fix='use a file that vitdense wrote, or weights as safetensors',
        ) from error
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            f"'{path.name}' is not a checkpoint of vitdense",
            where=str(path),
            why='it has no state_dict of names and tensors; it holds '
            + (some(sorted(map(str, content))) if isinstance(content, dict) else f'a {type(content).__name__}'),
            fix='give a checkpoint (.pth) of a run, or a model folder',
        )
    check_tensors(tensors, path)
    return content


def _tensors(content: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a checkpoint with their places, such as `optimizer.state.0.exp_avg`."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f'{name}.{key}' if name else str(key))
    elif isinstance(content, list | tuple):
        for row, value in enumerate(content):
            yield from _tensors(value, f'{name}.{row}')


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is broken in some other way
        unsafe = []
    if unsafe:
        return f'it would run code: {", ".join(sorted(unsafe)[:5])}'
    return why_unreadable(error)


def steps_in(work_dir: Path) -> list[Path]:
    """Return the checkpoints `step_*.pth` of a run, newest first."""
    checkpoints = [path for path in work_dir.glob('step_*.pth') if _step(path) is not None and path.is_file()]
    return sorted(checkpoints, key=_step, reverse=True)


def _step(path: Path) -> int | None:
    number = path.stem.removeprefix('step_')
    return int(number) if number.isdecimal() else None


def steps_after(work_dir: Path, step: int) -> list[Path]:
    """Return the checkpoints of a run that are later than `step`."""
    return [path for path in steps_in(work_dir) if _step(path) > step]


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest valid checkpoint of a run, or None; damaged ones are logged."""
    work_dir = Path(work_dir)
    pointed = ''
    with contextlib.suppress(OSError):  # a pointer that cannot be read is as good as none
        pointed = (work_dir / POINTER).read_text(errors='replace').strip()
    candidates = sorted(steps_in(work_dir), key=lambda path: path.name != pointed)  # the one it names comes first
    broken: list[str] = []
    for path in candidates:
        try:
            if not checksum_matches(path):
                read_checkpoint(path)  # raises for a damaged file; one without checksum may be valid
        except CheckpointError as error:
            broken.append(f'{path.name}: {error.message}')
            continue
        if broken:
            logger.warning('%s, using %s', '; '.join(broken), path.name)
        return path
    if broken:
        logger.warning('%s: no whole checkpoint is left in %s', '; '.join(broken), work_dir)
    return None


def delete_temporary_files(work_dir: Path) -> None:
    """Delete temporary files and folders of killed processes, and restore a model folder that one of them renamed."""
    for path in [*work_dir.glob('*.tmp.*'), *work_dir.glob('heads/*.tmp.*'), *work_dir.glob('model.old.*')]:
        if not path.suffix[1:].isdecimal():
            continue
        with contextlib.suppress(OSError):
            if path.match('model.old.*') and not (work_dir / 'model').exists():
                path.rename(work_dir / 'model')
            elif path.is_dir() and path.match('model.*'):
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()


def delete_older(work_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    for path in steps_in(work_dir)[max(keep, 1) :]:
        delete_checkpoint(path)


def delete_checkpoint(path: Path) -> bool:
    """Delete a checkpoint and then its checksum; return whether that worked."""
    try:
        path.unlink(missing_ok=True)
        path.with_name(f'{path.name}.sha256').unlink(missing_ok=True)
    except OSError as error:
        logger.warning('%s is not deleted: %s', path.name, error.strerror or error)
        return False
    return True


def delete_oldest(work_dir: Path, size: int) -> bool:
    """Delete the oldest step checkpoint if that can help to write one of `size` bytes; return whether it was deleted.

    The newest checkpoint whose checksum fits is never deleted.
    """
    steps = steps_in(work_dir)
    newest = None
    with contextlib.suppress(CheckpointError):
        newest = next((path for path in steps if checksum_matches(path)), None)
    spare = [path for path in steps if path != newest]
    available = free_bytes(work_dir) + sum(path.stat().st_size for path in spare)
    if newest is None or not spare or available < size or not delete_checkpoint(spare[-1]):
        return False
    logger.warning('disk full: %s is deleted to make room', spare[-1].name)
    return True


def to_cpu(value: Any) -> Any:
    """Return `value` with every tensor on the CPU; containers become plain dicts and lists."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of `state` that are not finite."""
    return [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return the metrics and the step of `best.pth`; None where there is none, or a damaged one."""
    try:
        content = read_checkpoint(folder / 'best.pth')
    except CheckpointError:
        return None
    best = content.get('best')
    return dict(best) if isinstance(best, dict) and isinstance(best.get('step'), int) else None
