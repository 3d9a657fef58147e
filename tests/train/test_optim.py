"""Learning rates of parameters, and parameters without weight decay."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError
from vitdense.train import optim
from vitdense.train.optim import Group, LayerDecay, build_optimizer, config_groups, group_rows, split_backbone_groups


def vit(**options) -> ViT:
    return ViT('vit_tiny_patch16_224', img_size=32, timm_args=dict(embed_dim=24, depth=3, num_heads=2), **options)


class Network(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.backbone = vit(**options)
        self.network.head = nn.Sequential(nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1))


def by_name(model: nn.Module, groups) -> dict[str, tuple[float, bool]]:
    return {name: (group.lr, group.decayed) for group in groups for name in group.names}


def test_every_trained_parameter_is_in_one_group_and_groups_are_few():
    model = Network()
    groups = LayerDecay(decay=0.65).groups(model)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len({(group.lr, group.decayed) for group in groups}) == len(groups) == 2 * 5  # 3 blocks and both ends


def test_layers_decay_as_in_beit_and_as_timm_counts_them():
    """The published definition: layer k of a ViT of depth d learns at decay ** (d + 1 - k)."""
    model = Network()
    actual = by_name(model, LayerDecay(decay=0.5, no_decay=('norm', 'bias', 'pos_embed', 'cls_token')).groups(model))
    prefix = 'network.backbone.model.'
    assert actual[f'{prefix}patch_embed.proj.weight'] == (0.5**4, True)
    assert actual[f'{prefix}pos_embed'] == (0.5**4, False)
    assert actual[f'{prefix}blocks.0.mlp.fc1.weight'] == (0.5**3, True)
    assert actual[f'{prefix}blocks.2.norm1.weight'] == (0.5**1, False)
    assert actual[f'{prefix}norm.weight'] == (1.0, False)
    assert actual['network.head.1.weight'] == (1.0, True) and actual['network.head.0.weight'] == (1.0, False)

    timm_model = model.network.backbone.model
    theirs = {}
    names = {id(parameter): name for name, parameter in timm_model.named_parameters()}
    for group in param_groups_layer_decay(timm_model, layer_decay=0.5, no_weight_decay_list=('pos_embed', 'cls_token')):
        for parameter in group['params']:
            theirs[prefix + names[id(parameter)]] = group['lr_scale']
    # timm puts the final norm into the last block's layer, and so is one factor higher below it
    norm = {f'{prefix}norm.weight', f'{prefix}norm.bias'}
    assert {actual[name][0] / scale for name, scale in theirs.items() if name not in norm} == {0.5}
    assert {theirs[name] for name in norm} == {1.0}


def test_published_recipes_can_be_said():
    frozen = Network(frozen=True)  # R1, R2: a linear head on a frozen backbone, weight decay everywhere
    groups = LayerDecay(no_decay=()).groups(frozen)
    assert [(group.lr, group.decayed) for group in groups] == [(1.0, True)]
    assert sum(len(group.names) for group in groups) == 4

    model = Network()  # R8c: the encoder flat at a tenth, weight decay on every parameter
    groups = LayerDecay(backbone_lr=0.1, no_decay=()).groups(model)
    assert sorted((group.lr, group.decayed) for group in groups) == [(0.1, True), (1.0, True)]

    groups = LayerDecay(head_lr=10).groups(model)  # R7: the head at ten times the rate
    assert {group.lr for group in groups} == {1.0, 10.0}

    actual = by_name(model, LayerDecay(lr_of={'attn': 0.1}).groups(model))
    assert actual['network.backbone.model.blocks.1.attn.qkv.weight'][0] == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="did you mean 'attn'"):
        LayerDecay(lr_of={'atn': 0.1}).groups(model)


def test_layer_scale_is_spared():
    model = nn.Module()
    model.backbone = ViT(
        'vit_tiny_patch16_224', img_size=32, timm_args=dict(embed_dim=24, depth=1, num_heads=2, init_values=1e-5)
    )
    actual = by_name(model, LayerDecay().groups(model))
    assert actual['backbone.model.blocks.0.ls1.gamma'] == (1.0, False)


def test_the_optimizer_keeps_full_rates_and_is_fused():
    groups = LayerDecay(decay=0.5).groups(Network())
    optimizer = build_optimizer(dict(type='torch.optim.AdamW', lr=2e-3, weight_decay=0.05), groups)
    assert optimizer.defaults['fused'] is True
    assert max(group['base_lr'] for group in optimizer.param_groups) == 2e-3
    wanted = [2e-3 * group.lr for group in groups]
    assert (
        [group['lr'] for group in optimizer.param_groups]
        == [group['base_lr'] for group in optimizer.param_groups]
        == wanted
    )
    assert not any(group['backbone'] for group in optimizer.param_groups)
    assert 'fused' not in build_optimizer(dict(type='torch.optim.Adamax', lr=1.0), groups).defaults  # torch has none
    assert not build_optimizer(dict(type='torch.optim.AdamW', lr=1.0, foreach=True), groups).defaults['fused']
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, 0.05}
    build_optimizer(dict(type='torch.optim.SGD', lr=0.1, momentum=0.9), groups)
    with pytest.raises(ConfigError, match='no learning rate'):
        build_optimizer(dict(type='torch.optim.AdamW'), groups)
    with pytest.raises(ConfigError, match='nothing to train'):
        build_optimizer(dict(type='torch.optim.AdamW', lr=1), [])
    with pytest.raises(ConfigError, match="did you mean 'betas'"):
        build_optimizer(dict(type='torch.optim.AdamW', lr=1, beta=(0, 1)), groups)


def test_the_printed_table():
    rows = group_rows(LayerDecay(decay=0.5).groups(Network()), 1e-3, 0.05)
    assert rows == [
        ('embedding', '6.25e-05', '18.43 k', '168'),
        ('block 0', '0.000125', '6.91 k', '312'),
        ('block 1', '0.00025', '6.91 k', '312'),
        ('block 2', '0.0005', '6.91 k', '312'),
        ('final norm, head.0, head.1', '0.001', '96', '100'),
    ]
    flat = group_rows(LayerDecay().groups(Network()), 1e-3, 0.05)
    assert [row[0] for row in flat] == ['embedding, blocks 0-2, final norm, head.0, head.1']
    slow = group_rows(LayerDecay(lr_of={'attn': 0.1}).groups(Network()), 1e-3, 0.05)
    locations = 'block 0 attn, block 1 attn, block 2 attn'
    assert [(row[0], row[1]) for row in slow] == [(flat[0][0], '0.001'), (locations, '0.0001')]
    assert [optim._count(number) for number in (999, 1000, 1_000_000)] == ['999', '1.00 k', '1.00 M']


def test_a_frozen_backbone_is_not_in_the_table():
    rows = group_rows(LayerDecay(decay=0.5).groups(Network(frozen=True)), 1e-3, 0.0)
    assert rows == [('head.0, head.1', '0.001', '0', '148')]


def test_a_rate_can_belong_to_parts_that_follow_each_other():
    """LW-DETR and RF-DETR: names with 'transformer.decoder' learn at lr_component_decay, other norms do not."""
    model = Network()
    model.network.decoder = nn.ModuleDict(dict(norm=nn.LayerNorm(4), layers=nn.ModuleList([nn.LayerNorm(4)])))
    model.network.other = nn.ModuleDict(dict(norm=nn.LayerNorm(4)))
    actual = by_name(model, LayerDecay(lr_of={'layers': 0.5, 'decoder.norm': 0.7}).groups(model))
    assert actual['network.decoder.norm.weight'][0] == 0.7 and actual['network.decoder.layers.0.weight'][0] == 0.5
    assert actual['network.other.norm.weight'][0] == actual['network.backbone.model.norm.weight'][0] == 1.0
    with pytest.raises(ConfigError, match='norm.decoder'):
        LayerDecay(lr_of={'norm.decoder': 0.7}).groups(model)


def test_weight_decay_can_spare_other_parts_of_the_vit_than_of_the_rest():
    model = Network()
    actual = by_name(model, LayerDecay(no_decay=(), backbone_no_decay=('norm', 'bias', 'pos_embed')).groups(model))
    prefix = 'network.backbone.model.'
    spared = {name for name, (_, decayed) in actual.items() if not decayed}
    assert {f'{prefix}pos_embed', f'{prefix}norm.weight', f'{prefix}blocks.0.attn.qkv.bias'} <= spared
    assert all(name.startswith(prefix) for name in spared) and f'{prefix}cls_token' not in spared
    assert actual['network.head.0.weight'][1] and actual['network.head.1.bias'][1]


def test_full_blocks_count_layers_as_eomt_does():
    """The last blocks learn at the full rate, the others at a decay for each block above, embeddings like the first."""
    model = Network()
    actual = by_name(model, LayerDecay(decay=0.5, full_blocks=1, backbone_lr=0.8).groups(model))
    rates = {name.removeprefix('network.backbone.model.'): rate for name, (rate, _) in actual.items()}
    assert [rates[f'blocks.{block}.attn.qkv.weight'] for block in range(3)] == pytest.approx([0.8 / 4, 0.8 / 2, 1.0])
    assert rates['patch_embed.proj.weight'] == rates['pos_embed'] == pytest.approx(0.8 / 4)
    assert rates['norm.weight'] == rates['network.head.1.weight'] == 1.0


def test_decays_are_shares_and_equal_rates_share_a_group():
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match=r'in \(0, 1\]'):
            LayerDecay(decay=decay)
    model = Network()
    assert len(LayerDecay(decay=1.0).groups(model)) == 2
    nearly = LayerDecay(lr_of={'head': 1 + 3e-13}).groups(model)
    assert len(nearly) == 2 and len(group_rows(nearly, 1.0, 0.1)) == 1
    assert len(group_rows([nearly[0], nearly[1]._replace(lr=1 + 3e-13)], 1.0, 0.1)) == 1


def test_a_vit_alone_is_a_model_too():
    alone = vit()
    actual = by_name(alone, LayerDecay(decay=0.5).groups(alone))
    assert actual['model.blocks.0.mlp.fc1.weight'] == (0.5**3, True) and actual['model.norm.weight'] == (1.0, False)


class Scale(nn.LayerNorm):
    pass


class NormedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gamma_1 = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 4)


class Gains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))


def test_norms_are_known_by_kind_or_name_and_own_what_is_theirs_alone():
    model = nn.ModuleDict(dict(scale=Scale(4), part=NormedPart(), gains=Gains()))
    actual = by_name(model, LayerDecay(no_decay=('norm',)).groups(model))
    spared = {name for name, (_, decayed) in actual.items() if not decayed}
    assert spared == {'scale.weight', 'scale.bias', 'part.weight', 'part.gamma_1'}
    actual = by_name(model, LayerDecay(no_decay=('layer_scale',)).groups(model))
    spared = {name for name, (_, decayed) in actual.items() if not decayed}
    assert spared == {'part.gamma_1', 'gains.gamma_1', 'gains.gamma_2'}


def test_groups_of_a_config_are_those_of_the_default_and_apart_where_asked():
    model = Network()
    default = config_groups(dict(groups=None), model, split_backbone=False)
    assert by_name(model, default) == by_name(model, LayerDecay().groups(model))
    assert not any(group.backbone for group in default)
    cut = config_groups(dict(groups=None), model, split_backbone=True)
    assert (
        [group.backbone for group in cut]
        == [True, False, True, False]
        == [group.backbone for group in split_backbone_groups(default, model)]
    )
    for group in cut:
        assert all(name.startswith('network.backbone.') == group.backbone for name in group.names)
    assert by_name(model, cut) == by_name(model, default)
    chosen = config_groups(dict(groups=dict(type=LayerDecay, backbone_lr=0.1)), model, split_backbone=False)
    assert {group.lr for group in chosen} == {0.1, 1.0}


@pytest.mark.parametrize(
    ('kinds', 'fused'), [(['cpu'], True), (['cuda'], True), (['cpu', 'cuda'], True), (['cpu', 'mps'], False)]
)
def test_fused_where_torch_has_it(kinds, fused, monkeypatch):
    monkeypatch.setattr(optim, 'build', lambda recipe, params: recipe)
    parameters = [SimpleNamespace(device=torch.device(kind)) for kind in kinds]
    recipe = build_optimizer(dict(type='torch.optim.AdamW', lr=1.0), [Group(1.0, True, [], parameters, [])])
    assert recipe['fused'] is fused
