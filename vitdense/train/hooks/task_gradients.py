"""Norms and cosine similarities of the gradients of each task's loss on the backbone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from mmengine.hooks import Hook
from torch import Tensor, distributed, nn

from vitdense.arguments import check
from vitdense.distributed.sharding import is_sharded
from vitdense.model import DenseModel
from vitdense.protocols import BackboneNetwork
from vitdense.types import Batch

logger = logging.getLogger('vitdense')


class TaskGradients(NamedTuple):
    """Gradients of the tasks of one batch on the shared weights."""

    norms: dict[str, float]  # L2 norm by task, of what the task adds to the sum of losses (weighted)
    cosines: dict[tuple[str, str], float]  # in [-1, 1] by pair of tasks; 0 where a task has no gradient


def task_gradients(model: DenseModel, *batches: Batch, scale: float = 1.0) -> TaskGradients:
    """Return norms and cosines of the gradients of each task on the trainable weights of `network.backbone`.

    `batches` are one or more of the training loader, on any device; gradients are the mean over them. The model runs
    once for each task and batch, with the same random numbers, and is left as it was: weights, gradients, running
    statistics and random states. `scale` multiplies the losses on the way back and is taken out again (the loss scale
    of float16). With several processes every one must call it; gradients are then those of all their batches. Networks
    without a backbone are shared as a whole.

    Cost: a forward and a backward pass for each task and batch, and memory for a copy of the backbone's gradients for
    each task. The sign of a cosine says whether tasks conflict (Yu et al. 2020, https://arxiv.org/abs/2001.06782,
    section 2).
    """
    shared = shared_parameters(model)
    gradients: dict[str, Tensor] = {}
    for name in model.branches:
        gradients[name] = sum(_gradient(model, name, batch, shared, scale) for batch in batches) / len(batches)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(gradients[name])
            gradients[name] /= distributed.get_world_size()
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    cosines = {
        (one, other): float(gradients[one] @ gradients[other]) / max(norms[one] * norms[other], 1e-30)
        for one, other in combinations(gradients, 2)
    }
    return TaskGradients(norms, cosines)


def _gradient(model: DenseModel, name: str, batch: Batch, shared: list[nn.Parameter], scale: float) -> Tensor:
    """Return the gradient of what the task `name` adds to the sum of losses of a batch, as one vector."""
    with _untouched(model):
        losses = model(*model.data_preprocessor(batch, True), mode='loss')
        loss = model.weighted_losses(losses).get(name)
        if loss is None:  # the batch has no labels for the task
            return _flat((None,) * len(shared), shared)
        return _flat(torch.autograd.grad(loss * scale, shared, allow_unused=True), shared) / scale


def shared_parameters(model: DenseModel) -> list[nn.Parameter]:
    """Return the trainable weights that all tasks share: those of the network's backbone."""
    network = model.network
    shared = network.backbone if isinstance(network, BackboneNetwork) else network
    return [parameter for parameter in shared.parameters() if parameter.requires_grad]


class TaskGradientHook(Hook):
    """Measure `task_gradients` every `interval` steps, and log `TASK.shared_grad_norm` and `grad_cosine.TASK.TASK`.

    The gradients are the mean over `batches` steps in a row. Homogeneous batches train one task each: there it is the
    number of turns in a round of the mixture, or more. A run with it takes the same steps as one without. A backbone
    that is still frozen is not measured.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 100, *, batches: int = 1) -> None:
        if not 1 <= batches <= interval:
            raise ValueError(f'{batches} batches are measured every {interval} steps; write 1 <= batches <= interval')
        self.interval = interval
        self.batches = batches
        self._kept: list[Batch] = []

    def before_train(self, runner: Any) -> None:
        why = 'gradients of single tasks are those of whole weights, which no process of a sharded run has'
        sharded = is_sharded(runner.network_model)
        check(not sharded, 'custom_hooks', 'TaskGradientHook', why, 'use --parallel ddp, or remove the hook')
        if not shared_parameters(runner.network_model):
            logger.info('the backbone is frozen: there are no shared gradients to measure')

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        position = batch_idx % self.interval
        self._kept = [*self._kept, data_batch] if 0 < position < self.batches else [data_batch] if position == 0 else []
        if len(self._kept) < self.batches or not shared_parameters(runner.network_model):
            return
        measured = task_gradients(runner.network_model, *self._kept, scale=runner.optim_wrapper.scaler.get_scale())
        norms = {f'{name}.shared_grad_norm': norm for name, norm in measured.norms.items()}
        cosines = {f'grad_cosine.{one}.{other}': value for (one, other), value in measured.cosines.items()}
        runner.train_loop.history.note(norms | cosines)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers and random states back on leaving."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def _flat(grads: tuple[Tensor | None, ...], shared: list[nn.Parameter]) -> Tensor:
    """Return all gradients as one float32 vector; what a loss does not reach has zeros."""
    pairs = zip(grads, shared, strict=True)
    return torch.cat([(torch.zeros_like(p) if grad is None else grad).float().flatten() for grad, p in pairs])
