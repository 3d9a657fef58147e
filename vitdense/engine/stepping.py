"""One optimizer step: accumulation, clipping, loss scaling, and the refusal of gradients that are not numbers."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vitdense.errors import ConfigError, NumericsError

PATIENCE = 5  # steps in a row without finite gradients, after which a run is over


class GuardedOptimWrapper(OptimWrapper):
    """mmengine's wrapper with a guard: a step whose gradients are not finite does not happen, and is counted.

    `max_norm` clips the global gradient norm. `accumulative_counts` adds up the gradients of as many batches; steps of
    the schedule count batches, as in mmengine. `scaled` scales losses for float16. `module` is the model: running
    statistics of its normalisation layers are put back when a step is refused.

    After 5 refused steps in a row NumericsError is raised. With a loss scale, refusals count only once the scale has
    fallen to 1: overflows above it are how the scale is found.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        *,
        accumulative_counts: int = 1,
        max_norm: float | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__(optimizer, accumulative_counts=accumulative_counts)
        self.max_norm = max_norm
        self.refused = 0  # steps refused so far
        self.refused_in_row = 0
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        self.scaled = scaled
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scaled)
        self._statistics = [
            buffer
            for layer in module.modules()
            if isinstance(layer, _NormBase)
            for buffer in layer.buffers(recurse=False)
        ]
        self._kept = [buffer.clone() for buffer in self._statistics]

    def keep_statistics(self) -> None:
        """Remember the running statistics; called before the first batch of every step."""
        if self._inner_count % self._accumulative_counts == 0:
            for kept, buffer in zip(self._kept, self._statistics, strict=True):
                kept.copy_(buffer)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Clip and step, unless a gradient is not finite. Raises NumericsError after 5 refusals in a row."""
        self.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(grads)
        finite = bool(torch.isfinite(self.grad_norm))  # the one wait for the device in a step
        if finite and self.max_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.max_norm, self.grad_norm)
        if finite:
            self.scaler.step(self.optimizer, **kwargs)
            self.refused_in_row = 0
        else:
            self._refuse()
        self.scaler.update(None if finite or not self.scaled else self.scaler.get_scale() / 2)

    def _refuse(self) -> None:
        self.refused += 1
        if not self.scaled or self.scaler.get_scale() <= 1:
            self.refused_in_row += 1
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            buffer.copy_(kept)
        if self.refused_in_row >= PATIENCE:
            raise NumericsError(
                f'gradients were not finite in {PATIENCE} steps in a row',
                where=f'after {self._inner_count} batches',
                why='the loss or a gradient overflowed; the weights on disk are those from before',
                fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, the loss scale and the counts (without mmengine's extra group)."""
        counts = {'refused': self.refused, 'refused_in_row': self.refused_in_row}
        return {'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict(), 'counts': counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.optimizer.load_state_dict(state_dict['optimizer'])
        if self.scaled and state_dict['scaler']:
            self.scaler.load_state_dict(state_dict['scaler'])
        self.refused = state_dict['counts']['refused']
        self.refused_in_row = state_dict['counts']['refused_in_row']


def clip_norm(clip_grad: dict[str, Any] | None) -> float | None:
    """Return the `max_norm` of a config's `clip_grad`. Raises ConfigError for anything else in it."""
    if clip_grad is None:
        return None
    if set(clip_grad) != {'max_norm'} or not clip_grad['max_norm'] > 0:
        raise ConfigError(
            f'clip_grad is {dict(clip_grad)!r}',
            where='optim_wrapper.clip_grad',
            why='gradients are clipped by their global norm',
            fix='write clip_grad = dict(max_norm=1.0), or None',
        )
    return float(clip_grad['max_norm'])
