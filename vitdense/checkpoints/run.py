"""Checkpoints of a training run: written atomically, with a checksum, and loaded without running code.

A checkpoint is a dict of tensors and plain Python, written with torch.save:

* `format` 1, `version` of vitdense, `config` (text), `seed`, `amp`, `batch_size` (of each process), `world_size`,
  `accumulative_counts`
* `step` (steps done), `samples_seen` (by all ranks), `validation_pending`
* `parameter_groups`: the names of the parameters in each group of the optimizer
* `classes` ({field: names}), `metainfo` of the training data, `metrics` of the last validation, `best` ones,
  `operating_points` (score thresholds) of these
* `state_dict`: the weights for inference (the EMA weights, if any); `training_state_dict`: those of training, where
  they differ; `omitted_weights`: weights of the pretrained file that are in neither
* `optimizer`, `scaler`, `skipped_steps`, `ema_updates`, `early_stopping`; a checkpoint of the best weights has none of
  them. Custom hooks may add keys (mmengine's `before_save_checkpoint`).

A sharded run writes folders `step_N.shards` instead (`vitdense.checkpoints.shard_folder`); `read_checkpoint` returns
the same content of both.

Beside `name.pth` lies `name.pth.sha256`. A file is written under a temporary name, flushed to disk, and only then
renamed; older ones are deleted after that. While a file is replaced, its checksum file holds both sums.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vitdense.checkpoints.shard_folder import (
    FOLDER,
    RUN,
    SUFFIX,
    check_shards,
    fill_shards,
    is_shard_folder,
    map_tensors,
    named_tensors,
    shards_match,
)
from vitdense.errors import CheckpointError, DiskError, FullDiskError, some
from vitdense.storage.atomic import atomic_path, disk_problem, format_bytes, free_bytes, sha256_of, write_text
from vitdense.storage.tensor_shards import is_distributed, local
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
        raise write_failure(path, cause, size) from error


def write_failure(path: Path, cause: OSError, size: int) -> DiskError:
    """Return the error for a checkpoint of `size` bytes that the disk refuses (FullDiskError for a full one)."""
    full = disk_problem(cause) == 'disk full'
    return (FullDiskError if full else DiskError)(
        f'checkpoint of {format_bytes(size)} not written (free {format_bytes(free_bytes(path.parent))})',
        where=str(path),
        why=cause.strerror or str(cause),
        fix='make room on the disk, then --resume; or lower checkpoint.keep'
        if full
        else 'see that the work directory can be written to, then --resume',
    )


def bytes_of(content: Any) -> int:
    """Return about how many bytes the tensors of `content` take."""
    return sum(leaf.nbytes if isinstance(leaf, Tensor) else 64 for leaf in tree_leaves(content))


def checksum_matches(path: Path) -> bool | None:
    """Return whether the file, or all files of a folder of shards, match their checksum; None when there is none."""
    if is_shard_folder(path):
        return checksum_matches(path / RUN) and shards_match(path, load_pickle(path / RUN).get('shards', {}))
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


def read_checkpoint(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint of a run, on the CPU, without running code. Raises CheckpointError.

    With `lazy` the tensors of a sharded run are meta tensors, which `fill_shards` reads, and its shards are unchecked.
    """
    path = Path(path)
    if not is_shard_folder(path):
        return _read_file(path)
    content = {**_read_file(path / RUN, lazy=True), FOLDER: str(path)}
    check_shards(content, path)
    if lazy:
        return content
    check_checksum(path)
    return fill_shards(content)


def check_checksum(path: Path) -> None:
    """Raise CheckpointError for a file, or a folder of shards, that does not match its checksum."""
    if checksum_matches(path) is False:
        raise CheckpointError(
            'checksum mismatch',
            where=str(path),
            why='the file is not the one that was written: a damaged disk or copy',
            fix='use another checkpoint of the run, or copy the file again',
        )


def _read_file(path: Path, *, lazy: bool = False) -> dict[str, Any]:
    """Return the content of a file; where it is `lazy`, some tensors may be meta tensors."""
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint '{path.name}'",
            where=str(path),
            why='there is no such file',
            fix='check the path; a work directory can be given to --resume too',
        )
    check_checksum(path)
    try:
        content = load_pickle(path)
        tensors = {name.removeprefix('state_dict.'): value for name, value in named_tensors(content)}
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
    check_tensors({name: value for name, value in tensors.items() if not (lazy and value.is_meta)}, path)
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is broken in some other way
        unsafe = []
    if unsafe:
        return f'it would run code: {", ".join(sorted(unsafe)[:5])}'
    return why_unreadable(error)


def steps_in(work_dir: Path) -> list[Path]:
    """Return the checkpoints `step_*` of a run, newest first."""
    paths = [*(path for path in work_dir.glob('step_*.pth') if path.is_file())]
    paths += [path for path in work_dir.glob(f'step_*{SUFFIX}') if is_shard_folder(path)]
    checkpoints = [path for path in paths if _step(path) is not None]
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
    """Delete temporary files and folders of killed processes, and restore folders that one of them renamed."""
    patterns = ('*.tmp.*', 'heads/*.tmp.*', 'model.old.*', f'step_*{SUFFIX}.old.*')
    for path in [path for pattern in patterns for path in work_dir.glob(pattern)]:
        if not path.suffix[1:].isdecimal():
            continue
        with contextlib.suppress(OSError):
            name, _, renamed = path.name.partition('.old.')
            if renamed and not (work_dir / name).exists():
                path.rename(work_dir / name)
            elif path.is_dir() and (path.match('model.*') or path.match(f'step_*{SUFFIX}.*')):
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
        if path.is_dir():
            shutil.rmtree(path.rename(path.with_name(f'{path.name}.tmp.{os.getpid()}')))
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
    available = free_bytes(work_dir) + sum(map(_bytes_on_disk, spare))
    if newest is None or not spare or available < size or not delete_checkpoint(spare[-1]):
        return False
    logger.warning('disk full: %s is deleted to make room', spare[-1].name)
    return True


def _bytes_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def to_cpu(value: Any) -> Any:
    """Return `value` with all but distributed tensors on the CPU; containers become plain dicts and lists."""
    return map_tensors(value, lambda _, held: held.detach() if is_distributed(held) else held.detach().cpu())


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of `state` that are not finite, of distributed ones in the part held here."""
    return [name for name, value in state.items() if value.is_floating_point() and not local(value).isfinite().all()]


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return the metrics and the step of `best.pth`; None where there is none, or a damaged one."""
    try:
        content = read_checkpoint(folder / 'best.pth')
    except CheckpointError:
        return None
    best = content.get('best')
    return dict(best) if isinstance(best, dict) and isinstance(best.get('step'), int) else None
