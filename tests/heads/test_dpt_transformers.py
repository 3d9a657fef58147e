"""Reassemble and the DPT head against transformers' DPT, the whole model with random weights copied over."""

import re

import pytest
import torch
from torch import nn

from vitdense.adapters.reassemble import Reassemble
from vitdense.errors import ConfigError
from vitdense.heads.dpt import DPTHead
from vitdense.registry import build
from vitdense.types import Features

dpt = pytest.importorskip('transformers.models.dpt.modeling_dpt')

CHANNELS = (8, 12, 16, 20)
FUSION = 16
ADAPTER = {
    r'neck\.reassemble_stage\.readout_projects\.(\d)\.0\.': r'mixes.\1.0.',
    r'neck\.reassemble_stage\.layers\.(\d)\.projection\.': r'projections.\1.',
    r'neck\.reassemble_stage\.layers\.(\d)\.resize\.': r'resizes.\1.',
}
HEAD = {
    r'neck\.convs\.': 'convs.',
    r'(fusions\.\d)\.projection\.': r'\1.project.',
    r'(fusions\.\d)\.residual_layer1\.': r'\1.enter.',
    r'(fusions\.\d)\.residual_layer2\.': r'\1.refine.',
    r'\.convolution(\d)\.': lambda actual: f'.convs.{int(actual[1]) - 1}.',
    r'\.batch_norm(\d)\.': lambda actual: f'.norms.{int(actual[1]) - 1}.',
    r'^head\.head\.': 'head.',
    r'^auxiliary_head\.head\.': 'aux.',
    r'^(head|aux)\.0\.': r'\1.0.conv.',
    r'^(head|aux)\.1\.': r'\1.0.norm.',
    r'^(head|aux)\.4\.': r'\1.2.',
}


def their_model(readout: str, batch_norm: bool) -> nn.Module:
    config = dpt.DPTConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=list(CHANNELS),
        fusion_hidden_size=FUSION,
        readout_type=readout,
        use_batch_norm_in_fusion_residual=batch_norm,
        num_labels=5,
    )
    model = dpt.DPTForSemanticSegmentation(config).eval()
    for name, tensor in model.state_dict().items():
        if 'norm' in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return model


def renamed(state: dict, names: dict, keep: tuple[str, ...]) -> dict:
    """Return what is called like one of `keep` afterwards, under our names; their fusions count from the coarsest."""
    ours = {}
    for key, tensor in state.items():
        key = re.sub(r'neck\.fusion_stage\.layers\.(\d)\.', lambda actual: f'fusions.{3 - int(actual[1])}.', key)
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        if key.startswith(keep) and not key.startswith('fusions.3.enter.'):  # the coarsest has nothing to join
            ours[key] = tensor
    return ours


def our_parts(theirs: nn.Module, readout: str, batch_norm: bool) -> tuple[nn.Module, nn.Module]:
    adapter = Reassemble(24, 16, layers=(0, 1, 2, 3), channels=CHANNELS, readout=readout)
    head = DPTHead(CHANNELS, adapter.strides, 5, channels=FUSION, batch_norm=batch_norm, upsample=True)
    adapter.load_state_dict(renamed(theirs.state_dict(), ADAPTER, ('mixes.', 'projections.', 'resizes.')), strict=True)
    head.load_state_dict(renamed(theirs.state_dict(), HEAD, ('convs.', 'fusions.', 'head.', 'aux.')), strict=True)
    return adapter.eval(), head.eval()


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(
    ('readout', 'batch_norm', 'grid'),
    [('project', True, (4, 4)), ('project', False, (5, 5)), ('add', True, (7, 7)), ('ignore', False, (4, 4))],
)
@torch.no_grad()
def test_equal_to_transformers_on_even_and_odd_grids(readout, batch_norm, grid):
    theirs = their_model(readout, batch_norm)
    adapter, head = our_parts(theirs, readout, batch_norm)
    imgs = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    states = theirs.dpt(imgs, output_hidden_states=True).hidden_states[1:]
    features = Features(
        layers=tuple(x[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2) for x in states),
        cls=tuple(x[:, 0] for x in states),
        input_size=(16 * grid[0], 16 * grid[1]),
    )
    outputs = head(adapter(features, imgs))
    assert relative_error(outputs.logits, theirs(imgs).logits) < 1e-5  # asked for: 1e-4
    assert outputs.aux == ()
    their_maps = theirs.neck(list(states))
    assert relative_error(head.aux(their_maps[-1]), theirs.auxiliary_head(their_maps[-1])) < 1e-5


def test_grids_that_are_not_square_equal_transformers_neck():
    """Their model assumes a square; their neck takes the size."""
    theirs = their_model('project', True)
    adapter, head = our_parts(theirs, 'project', True)
    states = [torch.randn(2, 1 + 4 * 6, 24) for _ in range(4)]
    layers = tuple(x[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2) for x in states)
    features = Features(layers=layers, cls=tuple(x[:, 0] for x in states), input_size=(64, 96))
    with torch.no_grad():
        wanted = theirs.head(theirs.neck(states, 4, 6))
        assert relative_error(head(adapter(features, torch.empty(0))).logits, wanted) < 1e-5


def test_logits_come_at_half_the_finest_stride_and_aux_in_training_only():
    head = DPTHead((8, 8), (8.0, 16.0), 3, channels=8)
    features = Features(maps=(torch.randn(2, 8, 8, 8), torch.randn(2, 8, 4, 4)), input_size=(64, 64))
    assert tuple(head(features).logits.shape) == (2, 3, 16, 16)
    assert [tuple(x.shape) for x in head(features).aux] == [(2, 3, 16, 16)]
    assert head.eval()(features).aux == ()


def test_a_class_token_that_is_not_there_cannot_be_read():
    with pytest.raises(ConfigError, match="use 'ignore'"):
        build(dict(type=Reassemble), in_channels=24, patch_stride=16, has_cls=False)
    with pytest.raises(ConfigError, match='4 levels'):
        build(dict(type=Reassemble, layers=(0, 1)), in_channels=24, patch_stride=16)


def test_dropout_drops_whole_channels():
    """mmsegmentation, BaseDecodeHead: nn.Dropout2d."""
    head = DPTHead((4, 4), (8, 16), 3, channels=16, dropout=0.5).train()
    assert type(head.head[1]) is type(head.aux[1]) is nn.Dropout2d
    dropped = (head.head[1](torch.ones(2, 16, 4, 4)) == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2)) and dropped.any()
