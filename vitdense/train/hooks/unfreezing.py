"""Freeze the ViT first, then unfreeze it from the top down."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from vitdense.arguments import check
from vitdense.protocols import FreezableBackbone

logger = logging.getLogger('vitdense')


class UnfreezeHook(Hook):
    """Freeze the ViT at first; from step `steps[i]` on, train the i-th of `len(steps)` equal parts of its blocks too.

    Parts are counted from the top: the last blocks and the final norm come first, the first blocks and the embedding
    last (gradual unfreezing: Howard & Ruder, arXiv 1801.06146, section 3.3). `steps=(500,)` is a frozen warm-up.
    Frozen layers keep evaluation mode and have no graph, no gradient, no weight decay and no moments. The stage follows
    from the step alone, so that a resumed run goes on exactly; with accumulated gradients it changes between updates.
    Other frozen weights (those under LoRA) stay frozen.

    Raises ValueError for steps that do not ascend, ConfigError where no ViT can be unfrozen.
    """

    priority = 'VERY_HIGH'

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = tuple(steps)
        if not self.steps or self.steps[0] < 1 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f'steps ascend and begin at 1 or later, got {self.steps}')
        self._unfrozen: int | None = None  # parts

    def before_train(self, runner: Any) -> None:
        for vit in self._vits(runner):
            trained = any(parameter.requires_grad for parameter in vit.parameters())
            why = 'there is nothing to unfreeze: the backbone is frozen for the whole run'
            check(trained, 'model.network.backbone.frozen', True, why, 'write False: UnfreezeHook freezes it at first')
        late = [step for step in self.steps if step >= runner.max_iters]
        if late:
            logger.warning('UnfreezeHook: the run ends before the steps %s', late)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        unfrozen = bisect.bisect_right(self.steps, batch_idx)
        wrapper = runner.optim_wrapper
        between_updates = wrapper._inner_count % wrapper._accumulative_counts == 0
        if unfrozen == self._unfrozen or not (between_updates or self._unfrozen is None):
            return
        self._unfrozen = unfrozen
        for vit in self._vits(runner):
            first = vit.depth * (len(self.steps) - unfrozen) // len(self.steps)  # the lowest trainable block
            vit.freeze_below(0 if unfrozen == len(self.steps) else first + 1 if unfrozen else vit.depth + 2)
            logger.info('step %d: %s', batch_idx, _words(first, vit.depth) if unfrozen else 'the ViT is frozen')
        if is_model_wrapper(runner.model):
            # DDP expects gradients of the parameters that were trainable when it was built
            runner.model = runner.wrap_model(None, runner.network_model)

    def _vits(self, runner: Any) -> list[nn.Module]:
        vits = [module for module in runner.network_model.modules() if isinstance(module, FreezableBackbone)]
        why = 'no part of the model can be unfrozen by layers: only a ViT has an order of them'
        check(bool(vits), 'custom_hooks', 'UnfreezeHook', why, 'remove the hook, or use ViT as backbone')
        return vits


def _words(first: int, depth: int) -> str:
    if first == 0:
        return 'all of the ViT is trained'
    return f'blocks {first} to {depth - 1} of the ViT are trained'
