"""The optimizer step: accumulation, clipping, loss scaling, and steps skipped for gradients that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vitdense.arguments import check
from vitdense.errors import NumericsError
from vitdense.storage.tensor_shards import whole
from vitdense.train.schedule import Schedule

logger = logging.getLogger('vitdense')
PATIENCE = 5  # skipped steps in a row that end a run


class Clipping(NamedTuple):
    """How gradients are clipped."""

    max_norm: float
    by_part: bool = False  # the backbone and each branch by their own norm, not all by the global one


class GuardedOptimWrapper(OptimWrapper):
    """mmengine's wrapper with a guard: steps whose gradients are not finite are skipped and counted.

    `clipping` clips the global gradient norm, or that of each part: where batches train one task each, large gradients
    of a head then leave the backbone's gradients unscaled. `accumulative_counts` adds up the gradients of as many
    batches; steps of the schedule count batches, as in mmengine. `scaled` scales losses for float16. `module` is
    the model: running statistics of its normalisation layers are restored when a step is skipped.

    A step without any gradient (a batch that no task has labels for) is skipped too, without being counted: moments
    and weight decay do not move the weights either.

    NumericsError is raised after 5 steps in a row that are not finite. With a loss scale, they count only once the
    scale has fallen to 1: overflows above it are how the scale is found.
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
        self.skipped_steps = 0
        self.skipped_in_row = 0
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

    def set_learning_rates(self, schedule: Schedule, step: int) -> float:
        """Set the learning rates of step number `step`, from 0, and return the highest of them."""
        groups = self.optimizer.param_groups
        for group in groups:
            group['lr'] = group['base_lr'] * schedule.ratio(step, backbone=group.get('backbone', False))
        return max(group['lr'] for group in groups)

    def keep_statistics(self) -> None:
        """Copy the running statistics of normalisation layers, in case that the step is skipped."""
        if self._inner_count % self._accumulative_counts == 0:
            for kept, buffer in zip(self._kept, self._statistics, strict=True):
                kept.copy_(buffer)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of a loss, which `scale_loss` has divided by the number of accumulated batches."""
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def clip_gradients(self) -> float:
        """Clip the gradients where they are finite; return their norm before that, over all parts."""
        self.scaler.unscale_(self.optimizer)
        parts = [part for part in self.parts if _gradients(part)]
        norms = [whole(nn.utils.get_total_norm(_gradients(part))) for part in parts]
        norm = float(norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms))  # waits for the device
        if self.clipping is not None and math.isfinite(norm) and norm > 0:
            for part, length in zip(parts, norms, strict=True):
                nn.utils.clip_grads_with_norm_(part, self.clipping.max_norm, length)
        return norm

    def step_if_finite(self, grad_norm: float) -> None:
        """Step, unless gradients of this norm allow none. Raises NumericsError after 5 in a row that are not finite."""
        finite = math.isfinite(grad_norm)
        if finite and grad_norm > 0:
            self.scaler.step(self.optimizer)
        else:
            for kept, buffer in zip(self._kept, self._statistics, strict=True):
                buffer.copy_(kept)
        if finite:
            self.skipped_in_row = 0
        else:
            self._count_skipped()
        self.scaler.update(None if finite or not self.scaled else self.scaler.get_scale() / 2)

    def step(self, **kwargs: Any) -> None:
        """Clip and step, as `update_params` of mmengine calls it."""
        self.step_if_finite(self.clip_gradients())

    def _count_skipped(self) -> None:
        self.skipped_steps += 1
        if not self.scaled or self.scaler.get_scale() <= 1:
            self.skipped_in_row += 1
            text = 'step skipped: the norm of its gradients is not finite (%d in a row, of %d that end it; %d in all)'
            logger.warning(text, self.skipped_in_row, PATIENCE, self.skipped_steps)
        if self.skipped_in_row >= PATIENCE:
            raise NumericsError(
                f'gradients were not finite in {PATIENCE} steps in a row',
                where=f'after {self._inner_count} batches',
                why='the loss or a gradient overflowed; the weights on disk are those from before',
                fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, the loss scale and the counts (without mmengine's extra group)."""
        return {
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'skipped_steps': {'all': self.skipped_steps, 'in_row': self.skipped_in_row},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, but for the settings of the groups: those are the config's.

        The moments come from `state_dict`; learning rates, weight decay, betas and the like stay as they are.
        """
        groups = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({'state': state_dict['optimizer']['state'], 'param_groups': groups})
        if self.scaled and state_dict['scaler']:
            self.scaler.load_state_dict(state_dict['scaler'])
        self.skipped_steps, self.skipped_in_row = (state_dict['skipped_steps'][key] for key in ('all', 'in_row'))


def read_clipping(clip_grad: dict[str, Any] | None) -> Clipping | None:
    """Return the clipping of a config's `clip_grad`. Raises ConfigError for anything else in it."""
    if clip_grad is None:
        return None
    unknown = set(clip_grad) - {'max_norm', 'by_part'}
    holds = not unknown and clip_grad.get('max_norm', 0) > 0 and isinstance(clip_grad.get('by_part', False), bool)
    why = 'gradients are clipped by their global norm, or by_part: the backbone and each branch by its own'
    fix = 'write clip_grad = dict(max_norm=1.0), dict(max_norm=1.0, by_part=True), or None'
    check(holds, 'optim_wrapper.clip_grad', dict(clip_grad), why, fix)
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
