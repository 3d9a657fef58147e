"""The learning rate as a function of the step: warm-up, then one decay. It stores nothing, so resuming is exact."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vitdense.arguments import check


class Schedule(NamedTuple):
    """How long a run is and how its learning rate moves. Steps are batches (iterations), also with accumulation.

    `ratio(step)` is what every group's learning rate is multiplied by in step 0 ... max_iters - 1. With
    t = (step - warmup_iters) / (max_iters - warmup_iters), it is

    * linear from `warmup_ratio` towards 1 during the warm-up;
    * poly: (1 - m) (1 - t) ** power + m;  cosine: m + (1 - m) (1 + cos(pi t)) / 2, where m is `min_ratio`;
    * step: `gamma` ** (number of `milestones` that have passed);  constant: 1.

    With `backbone_warmup_iters` the ViT has a rate of 0 in the warm-up of the other parts, then a warm-up of
    that many steps, and its decay begins after them (EoMT's two-stage warm-up).

    The last step has a rate above 0: t reaches 1 only after it (as in torch.optim.lr_scheduler.PolynomialLR).
    """

    max_iters: int
    val_interval: int  # steps between validations; one more comes at the end
    warmup_iters: int = 0
    warmup_ratio: float = 1e-6
    decay: Literal['poly', 'cosine', 'step', 'constant'] = 'poly'
    power: float = 1.0
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    min_ratio: float = 0.0
    backbone_warmup_iters: int = 0

    def ratio(self, step: int, *, backbone: bool = False) -> float:
        """Return the factor of the learning rate in `step` (from 0), for `backbone` that of the ViT."""
        first, length = 0, self.warmup_iters
        if backbone and self.backbone_warmup_iters:
            first, length = self.warmup_iters, self.backbone_warmup_iters
        if step < first:
            return 0.0
        if step < first + length:
            return self.warmup_ratio + (1 - self.warmup_ratio) * (step - first) / length
        t = (step - first - length) / max(self.max_iters - first - length, 1)
        if self.decay == 'poly':
            return self.min_ratio + (1 - self.min_ratio) * max(1 - t, 0) ** self.power
        if self.decay == 'cosine':
            return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * min(t, 1))) / 2
        if self.decay == 'step':
            return self.gamma ** bisect.bisect_right(sorted(self.milestones), step)
        return 1.0


def make_schedule(
    *, max_iters: int | None, max_epochs: int | None, val_interval: int | None, steps_per_epoch: int, **shape: object
) -> Schedule:
    """Return the schedule of a config's `schedule` section.

    A run is `max_iters` steps long, or `max_epochs` times `steps_per_epoch`; in the second case `val_interval` and
    `milestones` count epochs too (`warmup_iters` always counts steps). Raises ConfigError.
    """
    why = 'the length of a run is given by one of max_iters and max_epochs'
    fix = 'set one of schedule.max_iters and schedule.max_epochs, and the other to None'
    lengths = (max_iters, max_epochs)
    check(lengths.count(None) == 1, 'schedule: (max_iters, max_epochs)', lengths, why, fix)
    unit = 1 if max_epochs is None else steps_per_epoch
    length = (max_iters or 0) if max_epochs is None else max_epochs * unit
    for name, value in (('max_iters or max_epochs', length), ('val_interval', val_interval or 1)):
        holds = isinstance(value, int) and value > 0
        check(holds, f'schedule: {name}', value, 'it counts steps or epochs', 'give a whole number from 1 on')
    shape['milestones'] = tuple(milestone * unit for milestone in shape.get('milestones', ()))
    schedule = Schedule(length, min(length, (val_interval or length) * unit), **shape)
    warmup = schedule.warmup_iters + schedule.backbone_warmup_iters
    why = f'the learning rate would never reach its value in a run of {length} steps'
    fix = 'shorten the warm-up or lengthen the run'
    check(not warmup or warmup < length, 'schedule: steps of warm-up', warmup, why, fix)
    return schedule
