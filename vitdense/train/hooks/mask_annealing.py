"""Mask annealing of EoMT: the share of masked queries of each block as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from torch import nn

from vitdense.arguments import check
from vitdense.protocols import MaskedAttentionNetwork


class MaskAnnealingHook(Hook):
    """Mask all queries in the last blocks of an EoMT at first, and none in the end (arXiv 2503.19108, section 3.3).

    `begin` and `end` hold one number for each of these blocks, in shares of the run, in [0, 1]: the share of masked
    queries of block i is 1 until `begin[i]`, falls as (1 - t) ** `power`, t from 0 to 1, and is 0 from `end[i]` on. By
    default n blocks divide the run into n + 2 equal parts and fall one after the other in the parts but the first and
    the last, as in the published runs of four. The shares follow from the step alone, so that a resumed run goes on
    exactly.

    Raises ValueError for numbers that are no shares or do not ascend, ConfigError where there is nothing to mask.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self, *, begin: Sequence[float] | None = None, end: Sequence[float] | None = None, power: float = 0.9
    ) -> None:
        self.begin, self.end, self.power = begin, end, power
        if (begin is None) != (end is None):
            raise ValueError('begin and end are given together, one number for each block')
        if begin is not None and not all(0 <= first <= last <= 1 for first, last in zip(begin, end, strict=True)):
            raise ValueError(f'begin and end are shares of the run in [0, 1], got {tuple(begin)} and {tuple(end)}')

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        for network in _networks(runner.network_model):
            network.set_masking(self.shares(batch_idx / runner.max_iters, network.num_blocks))

    def shares(self, progress: float, num_blocks: int) -> list[float]:
        """Return the share of masked queries of each block when `progress` in [0, 1] of the run is done."""
        parts = num_blocks + 2
        begin = self.begin or [(block + 1) / parts for block in range(num_blocks)]
        end = self.end or [(block + 2) / parts for block in range(num_blocks)]
        return [self._share(progress, *span) for span in zip(begin, end, strict=True)]

    def _share(self, progress: float, begin: float, end: float) -> float:
        if progress >= end:
            return 0.0
        return 1.0 if progress < begin else (1 - (progress - begin) / (end - begin)) ** self.power


def _networks(model: nn.Module) -> list[nn.Module]:
    networks = [module for module in model.modules() if isinstance(module, MaskedAttentionNetwork)]
    why = 'no part of the model masks attention: only EoMT does'
    check(bool(networks), 'custom_hooks', 'MaskAnnealingHook', why, 'remove the hook, or use EoMT as network')
    return networks
