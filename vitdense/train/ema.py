"""An exponential moving average of the trained weights, used for validation and for the saved model."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor


class EmaHook(Hook):
    """Average the trainable parameters: average <- (1 - m) average + m parameter, after every optimizer step.

    m is `momentum`, and larger in the beginning: m = max(momentum, 9 / (10 + t)) after t steps, so that the random
    start is forgotten. Frozen parameters are not averaged; with `buffers` those that are floating-point numbers and
    saved are, such as the running statistics of batch norms (LW-DETR and RF-DETR average the whole state dict).
    mmengine's hook keeps a copy of the whole model and cannot save while a validation is under way; this one keeps what
    is trained, and can.
    """

    priority = 'NORMAL'

    def __init__(self, momentum: float = 0.0002, *, buffers: bool = False) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f'momentum is the weight of the newest parameters, in (0, 1), got {momentum}')
        self.momentum, self.buffers = momentum, buffers
        self.updates = 0
        self.names: list[str] = []
        self.parameters: list[Tensor] = []  # and buffers
        self.average: list[Tensor] = []
        self._kept: list[Tensor] | None = None  # the parameters, while the average is in their place

    def before_run(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if self.buffers:
            saved = model.state_dict().keys()
            named = ((name, value) for name, value in model.named_buffers() if name in saved)
            trained |= {name: value for name, value in named if value.is_floating_point()}
        self.names = list(trained)
        self.parameters = [value.detach() for value in trained.values()]
        self.average = [value.clone() for value in self.parameters]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.optim_wrapper.should_update():  # the step at hand moved the weights
            momentum = max(self.momentum, 9 / (10 + self.updates))
            torch._foreach_lerp_(self.average, self.parameters, momentum)
            self.updates += 1

    def before_val_epoch(self, runner: Any) -> None:
        self._kept = [value.clone() for value in self.parameters]
        torch._foreach_copy_(self.parameters, self.average)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        torch._foreach_copy_(self.parameters, self._kept)
        self._kept = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights to use, and the trained ones beside it."""
        trained = self.parameters if self._kept is None else self._kept
        checkpoint['training_state_dict'] = {name: value.cpu() for name, value in zip(self.names, trained, strict=True)}
        checkpoint['state_dict'].update(
            {name: value.cpu() for name, value in zip(self.names, self.average, strict=True)}
        )
        checkpoint['ema_updates'] = self.updates

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take the average out of a checkpoint; the runner has put the trained weights into the model already."""
        torch._foreach_copy_(self.average, [checkpoint['state_dict'][name] for name in self.names])
        self.updates = checkpoint.get('ema_updates', 0)
