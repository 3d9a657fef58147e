"""Strict loading of weights into modules, with a report of what matched, and atomic saving as safetensors."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vitdense.errors import CheckpointError, some
from vitdense.storage.atomic import atomic_path, disk_error
from vitdense.storage.weight_files import read_weights
from vitdense.storage.weight_sets import State

__all__ = ['Coverage', 'State', 'load_weights', 'read_weights', 'save_weights']

logger = logging.getLogger('vitdense')
FIX = 'load them into the model they were made for'


class Coverage(NamedTuple):
    """Match of a state dict with a module, counted in tensor elements."""

    matched: int  # elements that were loaded
    total: int  # elements of the module
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


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    partial: bool | Sequence[str] = False,
    convert: Callable[[State], State] | None = None,
    ignore: Sequence[str] = (),
    fix: str = FIX,
) -> Coverage:
    """Copy `state` into `module`, completely or not at all.

    One prefix (`module.`, `backbone.`, ...) is stripped from the names only when exactly one makes everything fit;
    `convert` then translates names and shapes. Leftover names that begin with one of `ignore` do not count. `where`
    names the source in messages, `fix` is their advice. `partial` copies what fits and leaves the rest as it is.

    Raises CheckpointError with the share that matched and the reasons when anything is missing, has another shape or
    has no place; when nothing fits at all; and when weights are NaN or infinite.
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
            fix=f"name the one that is meant behind the path: 'PATH:{complete[0][0].prefix.rstrip('.')}'",
        )
    coverage, trial = (complete or [max(trials, key=lambda trial: trial[0].matched)])[0]
    if not coverage.matched or not (coverage.complete or partial is True):
        _refuse(coverage, where, fix)
    taken = {name: trial[name] for name in wanted if _fits(trial.get(name), wanted[name])}
    _check_finite(taken, where)
    module.load_state_dict(taken, strict=False)
    _report(coverage, where)
    return coverage


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write `state` as a safetensors file, atomically. Raises DiskError; then an earlier file is unchanged."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(_unshared(state), temporary)
            temporary.chmod(mode)  # safetensors makes files that only their owner may read
    except (OSError, SafetensorError) as error:
        raise disk_error(path, error) from error


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
        return trial  # weights of another model: the comparison of names and shapes reports it better


def _cover(wanted: State, trial: State, prefix: str, ignore: tuple[str, ...], new: set[str]) -> Coverage:
    absent = [name for name in wanted if name not in trial]
    declared = tuple(name for name in absent if new & set(name.split('.')))
    leftover = [name for name in trial if name not in wanted]
    mismatched = (name for name in trial if name in wanted and not _fits(trial[name], wanted[name]))
    return Coverage(
        matched=sum(value.numel() for name, value in wanted.items() if _fits(trial.get(name), value)),
        total=sum(value.numel() for name, value in wanted.items() if name not in declared),
        prefix=prefix,
        missing=tuple(name for name in absent if name not in declared),
        mismatched=tuple(
            f'{name}: file {_shown(trial[name], wanted[name])}, model {_shown(wanted[name], trial[name])}'
            for name in mismatched
        ),
        unexpected=tuple(name for name in leftover if not name.startswith(ignore)),
        ignored=tuple(name for name in leftover if name.startswith(ignore)),
        new=declared,
    )


def _fits(value: Tensor | None, own: Tensor) -> bool:
    return value is not None and value.shape == own.shape and not _other_numbers(value, own)


def _other_numbers(value: Tensor, own: Tensor) -> bool:
    """Whether one holds whole numbers, as quantised weights are, and the other floating-point ones."""
    return value.is_floating_point() != own.is_floating_point()


def _shown(value: Tensor, other: Tensor) -> str:
    kind = f' {str(value.dtype).removeprefix("torch.")}' if _other_numbers(value, other) else ''
    return f'{tuple(value.shape)}{kind}'


def _refuse(coverage: Coverage, where: str, fix: str) -> None:
    left_over = f'; tensors of the file without a place: {len(coverage.unexpected)}' if coverage.unexpected else ''
    reasons = {
        'missing in the file': coverage.missing,
        'another shape': coverage.mismatched,
        'no place in the model': coverage.unexpected,
    }
    raise CheckpointError(
        f'{coverage}{left_over}',
        where=where,
        why='\n'.join(f'{label}: {some(names)}' for label, names in reasons.items() if names),
        fix=fix,
    )


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError for weights that are NaN or infinite. A sum is read first: it needs no memory."""
    suspects = (name for name, value in state.items() if value.is_floating_point() and not value.sum().isfinite())
    bad = [name for name in suspects if not state[name].isfinite().all()]
    if bad:
        raise CheckpointError(
            f'{len(bad)} tensor{"s" * (len(bad) > 1)} of the file {"are" if len(bad) > 1 else "is"} not finite',
            where=where,
            why=f'there are NaN or infinite values in {some(bad)}',
            fix='take another checkpoint, from before the training diverged',
        )


def _report(coverage: Coverage, where: str) -> None:
    stripped = f" after stripping the prefix '{coverage.prefix}'" if coverage.prefix else ''
    logger.log(logging.INFO if coverage.complete else logging.WARNING, '%s: %s%s', where, coverage, stripped)
    if coverage.ignored:
        logger.info('%s: not used: %s', where, some(coverage.ignored))
    if coverage.missing or coverage.mismatched:
        logger.warning('%s: kept as initialised: %s', where, some(coverage.missing + coverage.mismatched))
    if coverage.unexpected:
        logger.warning('%s: left out, no place: %s', where, some(coverage.unexpected))


def _unshared(state: Mapping[str, Tensor]) -> State:
    """Return contiguous CPU copies; safetensors refuses two names of one memory."""
    addresses: set[int] = set()
    result = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        result[name] = value.clone() if address in addresses else value
        addresses.add(address)
    return result


def _count(number: int) -> str:
    for size, unit in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if number >= size:
            return f'{number / size:.1f}{unit}'
    return str(number)
