"""An exponential moving average of the trained weights, used for validation and for the saved model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.checkpoints.run import to_cpu
from vitdense.storage.tensor_shards import is_distributed, local


class Ema:
    """The average of the trainable parameters: average <- (1 - m) average + m parameter, after every optimizer step.

    m is `momentum`, and larger in the beginning: m = max(momentum, 9 / (10 + t)) after t steps, so that the random
    start is forgotten. Frozen parameters are not averaged; with `buffers` those that are floating-point numbers and
    saved are, such as the running statistics of batch norms (LW-DETR and RF-DETR average the whole state dict).
    mmengine's EMAHook keeps a copy of the whole model and cannot save while a validation is under way; this one keeps
    what is trained, and can.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.0002, *, buffers: bool = False) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f'momentum is the weight of the newest parameters, in (0, 1), got {momentum}')
        self.momentum = momentum
        self.updates = 0
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if buffers:
            saved = model.state_dict().keys()
            named = ((name, value) for name, value in model.named_buffers() if name in saved)
            trained |= {name: value for name, value in named if value.is_floating_point()}
        self.names = list(trained)
        # and buffers; a sharded parameter may get other memory later, so it is kept itself
        self.parameters: list[Tensor] = [v if is_distributed(v) else v.detach() for v in trained.values()]
        self.average: list[Tensor] = [value.detach().clone() for value in self.parameters]
        self._kept: list[Tensor] | None = None  # the parameters, while the average is in their place

    def update(self) -> None:
        """Update the average after a step of the optimizer."""
        momentum = max(self.momentum, 9 / (10 + self.updates))
        torch._foreach_lerp_(_local(self.average), _local(self.parameters), momentum)
        self.updates += 1

    def apply(self) -> None:
        """Put the average in the place of the parameters, for a validation."""
        self._kept = [value.detach().clone() for value in self.parameters]
        torch._foreach_copy_(_local(self.parameters), _local(self.average))

    def remove(self) -> None:
        """Put the trained parameters back."""
        torch._foreach_copy_(_local(self.parameters), _local(self._kept))
        self._kept = None

    def state(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state for a checkpoint with `weights`: the average as weights, and the trained ones."""
        trained = self.parameters if self._kept is None else self._kept
        averaged = dict(zip(self.names, to_cpu(self.average), strict=True))
        return {
            'state_dict': {**weights, **averaged},
            'training_state_dict': dict(zip(self.names, to_cpu(trained), strict=True)),
            'ema_updates': self.updates,
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the average out of a checkpoint."""
        torch._foreach_copy_(_local(self.average), _local([checkpoint['state_dict'][name] for name in self.names]))
        self.updates = checkpoint.get('ema_updates', 0)


def _local(values: Sequence[Tensor]) -> list[Tensor]:
    return [local(value) for value in values]
