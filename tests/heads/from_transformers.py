"""Weights of transformers' detectors under our names; random weights in which every parameter changes the output."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LAYER = {  # theirs -> ours, inside an encoder or decoder layer
    '.self_attn_layer_norm.': '.add1.norm.',
    '.encoder_attn_layer_norm.': '.add2.norm.',
    '.cross_attn_layer_norm.': '.add2.norm.',
    '.final_layer_norm.': '.feed_forward.add.norm.',
    '.layer_norm.': '.feed_forward.add.norm.',
    '.encoder_attn.': '.cross_attn.',
    '.mlp.fc': '.feed_forward.linear',
    '.o_proj.': '.out_proj.',
}


def randomise(module: nn.Module) -> None:
    """Draw all weights: no zero, and no norm that is nearly the identity."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'norm' in name and name.endswith('weight'):
                parameter.uniform_(0.5, 1.5)
            elif 'sampling_offsets.bias' in name:
                parameter.normal_(std=2.0)
            else:
                parameter.normal_(std=0.15)


def translate(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return `state` with the parts of its keys renamed, layers as in `LAYER`, and query, key and value packed."""
    ours = {}
    for key, tensor in state.items():
        for their_name, our_name in {**names, **(LAYER if '.layers.' in key else {})}.items():
            key = key.replace(their_name, our_name)
        if 'predictor' in key or 'position_encoder' in key:
            key = key.replace('.layers.', '.linears.')
        ours[key] = tensor
    for key in [key for key in ours if '.q_proj.' in key]:
        parts = [ours.pop(key.replace('.q_proj.', f'.{part}_proj.')) for part in 'qkv']
        ours[key.replace('.q_proj.', '.in_proj_')] = torch.cat(parts)
    return ours


def relative_error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a module under the keys of its state dict; zeros for what has none."""
    state = module.state_dict(keep_vars=True)
    return {
        key: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for key, tensor in state.items()
        if isinstance(tensor, nn.Parameter)
    }


def gradient_error(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the largest distance of two gradients of a tensor, as a share of the wanted one's length.

    A gradient that is zero but for rounding is measured by the longest gradient of all.
    """
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    longest = max(tensor.norm() for tensor in wanted.values())
    assert longest > 0
    errors = {
        key: ((got[key] - tensor).norm() / (tensor.norm() if tensor.norm() > 1e-3 * longest else longest)).item()
        for key, tensor in wanted.items()
    }
    return max(errors.values())
