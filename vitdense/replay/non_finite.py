"""Names of the tensors of one training step that are not finite, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitdense.errors import NumericsError
from vitdense.types import Meta, Target


class StepInputs(NamedTuple):
    """One preprocessed batch, as a model takes it (see `Batch`)."""

    imgs: Tensor
    targets: Sequence[Target]
    metas: Sequence[Meta]
    valid: Tensor | None


def non_finite_tensors(model: nn.Module, inputs: StepInputs, *, scale: float = 1.0) -> list[str]:
    """Return the names of all tensors of a training step of `model` (a `DenseModel`) that are not finite.

    They are parameters and buffers, the images, outputs of modules as they are computed, losses, and gradients of the
    loss times `scale`. A NumericsError of the step ends the list. Gradients of before are deleted.
    """
    names = [f'parameter {name}' for name in _odd(model.named_parameters())]
    names += [f'buffer {name}' for name in _odd(model.named_buffers())]
    names += [f'input {name}' for name in _odd([('imgs', inputs.imgs)])]
    model.zero_grad(set_to_none=True)
    try:
        with _watched(model, names):
            losses = model(*inputs, mode='loss')
        names += [f'loss {name}' for name in _odd(losses.items())]
        total, _ = model.parse_losses(losses)
        (total * scale).backward()
    except NumericsError as error:
        return [*names, f'error {error.message}']
    gradients = ((name, each.grad) for name, each in model.named_parameters() if each.grad is not None)
    return names + [f'gradient {name}' for name in _odd(gradients)]


@contextmanager
def _watched(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Add the outputs of modules that are not finite to `names`, while the block runs."""

    def watch(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if _odd((name, leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
                names.append(f'output {name}')

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _odd(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that are not finite."""
    return [name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()]
