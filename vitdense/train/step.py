"""One optimizer step: accumulation, clipping, loss scaling, and the refusal of gradients that are not numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vitdense.errors import ConfigError, NumericsError

PATIENCE = 5  # steps in a row without finite gradients, after which a run is over


class Clipping(NamedTuple):
    """How gradients are clipped."""

    max_norm: float
    by_part: bool = False  # the backbone and each branch by their own norm, not all by the global one


class GuardedOptimWrapper(OptimWrapper):
    """mmengine's wrapper with a guard: a step whose gradients are not finite does not happen, and is counted.

    `clipping` clips the global gradient norm, or that of each part: where batches train one task each, a head with
    large gradients then takes nothing of the backbone's share away. `accumulative_counts` adds up the gradients of as
    many batches; steps of the schedule count batches, as in mmengine. `scaled` scales losses for float16. `module` is
    the model: running statistics of its normalisation layers are put back when a step does not happen.

    Without any gradient there is nothing to learn (a batch that no task has labels for): that step does not happen
    either, nor do moments and weight decay move the weights.

    After 5 refused steps in a row NumericsError is raised. With a loss scale, refusals count only once the scale has
    fallen to 1: overflows above it are how the scale is found.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        *,
        accumulative_counts: int = 1,
        clipping: Clipping | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__(optimizer, accumulative_counts=accumulative_counts)
        self.clipping = clipping
        self.refused = 0  # steps refused so far
        self.refused_in_row = 0
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        self.parts = _parts(module, self.parameters) if clipping and clipping.by_part else [self.parameters]
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
        parts = [part for part in self.parts if _gradients(part)]
        norms = [nn.utils.get_total_norm(_gradients(part)) for part in parts]
        self.grad_norm = norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
        length = float(self.grad_norm)  # here a step waits for the device
        finite = math.isfinite(length)
        if finite and length > 0:
            self._clip(parts, norms)
            self.scaler.step(self.optimizer, **kwargs)
        else:
            self._put_back()
        if finite:
            self.refused_in_row = 0
        else:
            self._refuse()
        self.scaler.update(None if finite or not self.scaled else self.scaler.get_scale() / 2)

    def _clip(self, parts: list[list[nn.Parameter]], norms: list[Tensor]) -> None:
        if self.clipping is not None:
            for part, norm in zip(parts, norms, strict=True):
                nn.utils.clip_grads_with_norm_(part, self.clipping.max_norm, norm)

    def _put_back(self) -> None:
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            buffer.copy_(kept)

    def _refuse(self) -> None:
        self.refused += 1
        if not self.scaled or self.scaler.get_scale() <= 1:
            self.refused_in_row += 1
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
        """Put back what `state_dict` returned, but for the settings of the groups: those are the config's.

        The moments come from `state_dict`; learning rates, weight decay, betas and the like stay as they are.
        """
        groups = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({'state': state_dict['optimizer']['state'], 'param_groups': groups})
        if self.scaled and state_dict['scaler']:
            self.scaler.load_state_dict(state_dict['scaler'])
        self.refused = state_dict['counts']['refused']
        self.refused_in_row = state_dict['counts']['refused_in_row']


def read_clipping(clip_grad: dict[str, Any] | None) -> Clipping | None:
    """Return what a config's `clip_grad` asks for. Raises ConfigError for anything else in it."""
    if clip_grad is None:
        return None
    strange = set(clip_grad) - {'max_norm', 'by_part'}
    if strange or not clip_grad.get('max_norm', 0) > 0 or not isinstance(clip_grad.get('by_part', False), bool):
        raise ConfigError(
            f'clip_grad is {dict(clip_grad)!r}',
            where='optim_wrapper.clip_grad',
            why='gradients are clipped by their global norm, or by_part: the backbone and each branch by its own',
            fix='write clip_grad = dict(max_norm=1.0), dict(max_norm=1.0, by_part=True), or None',
        )
    return Clipping(float(clip_grad['max_norm']), clip_grad.get('by_part', False))


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _parts(module: nn.Module, parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return `parameters` by the part of the model they are in: the backbone, each branch, and the rest."""
    wanted, parts = {id(parameter) for parameter in parameters}, {}
    for name, parameter in module.named_parameters():
        if id(parameter) in wanted:
            _, kind, branch, *_ = (*name.split('.'), '', '')  # network.heads.sem..., network.backbone...
            part = branch if kind in ('heads', 'adapters') else kind == 'backbone'
            parts.setdefault(part, []).append(parameter)
    return list(parts.values())
