"""Models on several processes: replicated (DDP), or sharded with FSDP2 so that no process holds all of one.

`fully_shard` (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) changes modules in place: names
of parameters and the calls of the model stay, its parameters become distributed tensors. Each unit (a block of the ViT,
an adapter, a head) is gathered just before it runs and freed after it; what is in no unit is gathered for the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from vitdense.device import Precision
from vitdense.errors import ConfigError
from vitdense.protocols import BranchedNetwork, HeadsNetwork, ShardableBackbone
from vitdense.storage.tensor_shards import whole

_whole: WeakSet[nn.Module] = WeakSet()  # models within `gathered`


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of `model` are divided among the processes."""
    return isinstance(model, FSDPModule)


def to_device(model: nn.Module, device: torch.device, precision: Precision, *, sharded: bool) -> nn.Module:
    """Bring a model to the device of this process; of one that is `sharded`, only the shard.

    With bfloat16, the blocks of the ViT are gathered as bfloat16, but for norms and layer scales, which compute in
    float32 as they do under DDP; gradients are summed, and weights kept, in float32.
    Raises ConfigError for float16, whose loss scale differs between processes.
    """
    if not sharded:
        return model.to(device)
    if precision.scaled:
        raise ConfigError(
            'sharded training has no float16',
            where='amp / --amp fp16',
            why='the loss scale of float16 is that of whole gradients',
            fix='use --amp bf16 or --amp off, or --parallel ddp',
        )
    _agree(model)
    mesh = torch.distributed.init_device_mesh(device.type, (distributed.get_world_size(),))
    halves = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
    for unit in _blocks(model):
        if precision.dtype and (exact := _vector_layers(unit)):
            fully_shard(exact, mesh=mesh)
        fully_shard(unit, mesh=mesh, **({'mp_policy': halves} if precision.dtype else {}))
    for unit in _branches(model.network):
        fully_shard(unit, mesh=mesh)
    return fully_shard(_synchronised(model, device), mesh=mesh)


def _agree(model: nn.Module) -> None:
    """Give all processes the weights of the first, as DDP does."""
    for value in (*model.parameters(), *model.buffers()):
        shared = value.detach().cuda() if distributed.get_backend() == 'nccl' else value.detach()
        distributed.broadcast(shared, 0)
        value.detach().copy_(shared)


def _blocks(model: nn.Module) -> list[nn.Module]:
    backbones = [module for module in model.modules() if isinstance(module, ShardableBackbone)]
    return [unit for backbone in backbones for unit in backbone.sharding_units()]


def _vector_layers(unit: nn.Module) -> list[nn.Module]:
    """Return the layers within `unit` that have vectors only: norms and layer scales."""
    layers = [layer for layer in unit.modules() if layer is not unit and next(layer.children(), None) is None]
    owned = [(layer, list(layer.parameters(recurse=False))) for layer in layers]
    return [layer for layer, parameters in owned if parameters and all(each.ndim < 2 for each in parameters)]


def _branches(network: nn.Module) -> list[nn.Module]:
    parts = [*network.adapters.values(), *network.heads.values()] if isinstance(network, HeadsNetwork) else []
    return [part for part in parts if next(part.parameters(), None) is not None]


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model in DDP's wrapper, where there are several processes."""
    if not distributed.is_initialized():
        return model
    return MMDistributedDataParallel(
        module=_synchronised(model, device),
        device_ids=[device.index] if device.type == 'cuda' else None,
        broadcast_buffers=True,
        # a step leaves the branches out that it has no labels for
        find_unused_parameters=isinstance(model.network, BranchedNetwork) and len(model.network.trainable_branches) > 1,
    )


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch norms that count the images of all processes (CUDA has these alone)."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == 'cuda' else model


def share_statistics(model: nn.Module) -> None:
    """Give all processes the running statistics of the first; without synchronised batch norm each has its own."""
    for layer in model.modules() if distributed.is_initialized() else ():
        if isinstance(layer, _NormBase) and not isinstance(layer, nn.SyncBatchNorm):
            for buffer in layer.buffers(recurse=False):
                distributed.broadcast(buffer, 0)


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters of a sharded model, which are the shards again; other models are not changed."""
    for unit in _units(model):
        unit.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep all of a sharded model on every process while the block runs, which then needs no other process.

    Processes may run it differently often, on other numbers of images and windows. Nothing is done to other models.
    """
    units = _units(model)
    _keep_gathered(units)
    _whole.add(model)
    try:
        yield
    finally:
        _whole.discard(model)
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def _keep_gathered(units: list[FSDPModule]) -> None:
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


@contextmanager
def shards_of(model: nn.Module) -> Iterator[None]:
    """Let the parameters be the shards while the block runs, also within `gathered`."""
    reshard(model)
    yield
    if model in _whole:
        _keep_gathered(_units(model))


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)] if is_sharded(model) else []


def gather(content: Any) -> Any:
    """Return nested `content` with distributed tensors as whole ones, on the CPU of the first process (elsewhere
    empty). All processes call this together.
    """
    first = not distributed.is_initialized() or distributed.get_rank() == 0

    def collected(value: Tensor) -> Tensor:
        full = whole(value)
        return full.detach().cpu() if first else full.new_empty(0, device='cpu')

    return tree_map_only(Tensor, collected, content)


def shard_like(value: Tensor, template: Tensor) -> Tensor:
    """Return a whole tensor, which all processes have, divided as `template` is."""
    value = value.to(template.device)
    return distribute_tensor(value, template.device_mesh, template.placements, src_data_rank=None)
