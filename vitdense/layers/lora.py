"""LoRA: frozen linear layers with trainable low-rank updates, which can be merged into their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check
from vitdense.errors import did_you_mean


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA: target layers, rank, scale and dropout (Hu et al., arXiv 2106.09685, section 4.1).

    `targets` are parts of dotted names: 'attn' is every linear layer of the attention, 'mlp' every one of the MLP,
    'attn.qkv' or 'fc1' a single one. The update is `alpha / rank` times the product of the two matrices; `alpha`
    defaults to twice the rank. `dropout` is that of the input of the update.

    Raises ValueError for invalid numbers.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Sequence[str] = ('attn',)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f'rank is at least 1 and dropout in [0, 1), got {self.rank} and {self.dropout}')

    def insert(self, module: nn.Module) -> None:
        """Freeze `module` and add trainable low-rank updates to its targets. Raises ConfigError."""
        layers = {name: child for name, child in module.named_modules() if type(child) is nn.Linear}
        chosen = {name for target in self.targets for name in layers if _is_part(target, name)}
        self._check(set(layers))
        module.requires_grad_(False)
        scale = (2 * self.rank if self.alpha is None else self.alpha) / self.rank
        for name in sorted(chosen):
            _replace(module, name, LoraLinear(layers[name], self.rank, scale=scale, dropout=self.dropout))

    def _check(self, names: set[str]) -> None:
        parts = sorted({part for name in names for part in name.split('.') if not part.isdigit()})
        for target in self.targets or ('',):
            why = f'names of linear layers are made of: {", ".join(parts)}{did_you_mean(target, parts)}'
            fix = "name parts of them, such as targets=('attn',) or ('attn', 'mlp')"
            check(any(_is_part(target, name) for name in names), 'Lora.targets', target, why, fix)


class LoraLinear(nn.Module):
    """A frozen linear layer W with a low-rank update: y = W x + b + scale * B A x, A random and B zero at first.

    `weight` and `bias` are those of `linear` and keep their names, so that weights load as into the layer itself.
    """

    def __init__(self, linear: nn.Linear, rank: int, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        correction = functional.linear(functional.linear(self.dropout(x), self.lora_a), self.lora_b)
        return functional.linear(x, self.weight, self.bias) + self.scale * correction

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the linear layer with the same output: its weight is W + scale * B A."""
        device, dtype = self.weight.device, self.weight.dtype
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=device, dtype=dtype
        ).train(self.training)
        correction = self.scale * self.lora_b.double() @ self.lora_a.double()
        linear.weight.copy_(self.weight.double() + correction)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear.requires_grad_(False)

    def extra_repr(self) -> str:
        rank = len(self.lora_a)
        return f'{self.in_features}, {self.out_features}, rank={rank}, scale={self.scale:g}'


def merge_lora(module: nn.Module) -> int:
    """Replace every `LoraLinear` in `module` by its merged linear layer; return their number."""
    lora_names = [name for name, child in module.named_modules() if isinstance(child, LoraLinear)]
    for name in lora_names:
        _replace(module, name, module.get_submodule(name).merged())
    return len(lora_names)


def _is_part(target: str, name: str) -> bool:
    """Return whether the dotted `target` is a part of the dotted `name`."""
    return f'.{target}.' in f'.{name}.'


def _replace(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition('.')
    setattr(module.get_submodule(parent), last, child)
