"""How masked attention and the rate of the ViT move with the step, as in the published runs of EoMT."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError
from vitdense.networks.eomt import EoMT
from vitdense.train.hooks.mask_annealing import MaskAnnealingHook
from vitdense.train.optim import LayerDecay, build_optimizer, split_backbone_groups
from vitdense.train.schedule import Schedule, make_schedule


def network(depth: int = 4) -> EoMT:
    vit = ViT('vit_tiny_patch16_224', img_size=32, timm_args=dict(embed_dim=24, depth=depth, num_heads=2))
    return EoMT(vit, num_queries=3, num_blocks=2, num_classes={'sem': 2})


def test_blocks_are_unmasked_one_after_the_other() -> None:
    hook = MaskAnnealingHook()
    assert hook.shares(0.0, 4) == [1.0] * 4
    assert hook.shares(6520 / 39120, 4) == [1.0] * 4  # the published steps of a run of 39 120
    assert hook.shares(26080 / 39120, 4) == [0.0, 0.0, 0.0, 1.0]
    assert hook.shares(32600 / 39120, 4) == [0.0] * 4
    assert hook.shares((13040 + 1630) / 39120, 4) == pytest.approx([0.0, 0.75**0.9, 1.0, 1.0])
    options = MaskAnnealingHook(begin=(0.0, 0.5), end=(0.2, 0.6), power=1.0)
    assert options.shares(0.1, 2) == pytest.approx([0.5, 1.0])
    at_once = MaskAnnealingHook(begin=(0.5,), end=(0.5,))
    assert at_once.shares(0.49, 1) == [1.0] and at_once.shares(0.5, 1) == [0.0]


def test_the_hook_sets_the_network_from_the_step() -> None:
    model = nn.ModuleDict({'network': network()})
    runner = SimpleNamespace(network_model=model, max_iters=8)
    MaskAnnealingHook().before_train_iter(runner, 3)
    assert model['network'].attn_mask_probs.tolist() == pytest.approx([0.5**0.9, 1.0])
    MaskAnnealingHook().before_train_iter(runner, 7)
    assert model['network'].attn_mask_probs.tolist() == [0.0, 0.0]


def test_what_cannot_be_annealed_is_an_error() -> None:
    with pytest.raises(ConfigError, match='no part of the model masks'):
        MaskAnnealingHook().before_train_iter(SimpleNamespace(network_model=nn.Linear(1, 1), max_iters=2), 0)
    some = dict(begin=(0.1, 0.5), end=(0.2, 0.4))  # one of two ascends
    for wrong in (dict(begin=(0.1,)), dict(begin=(0.5,), end=(0.2,)), dict(begin=(1.0,), end=(2.0,)), some):
        with pytest.raises(ValueError, match='begin and end'):
            MaskAnnealingHook(**wrong)


def test_the_vit_warms_up_behind_the_rest() -> None:
    schedule = Schedule(100, 100, warmup_iters=10, warmup_ratio=0.0, backbone_warmup_iters=20, power=0.9)
    assert [schedule.ratio(step) for step in (0, 5, 10, 55)] == pytest.approx([0.0, 0.5, 1.0, 0.5**0.9])
    assert [schedule.ratio(step, backbone=True) for step in (5, 10, 20, 30, 65)] == pytest.approx(
        [0.0, 0.0, 0.5, 1.0, 0.5**0.9]
    )
    alone = schedule._replace(backbone_warmup_iters=0)
    assert all(alone.ratio(step) == alone.ratio(step, backbone=True) for step in range(100))
    context = dict(max_iters=20, max_epochs=None, val_interval=None, steps_per_epoch=1)
    with pytest.raises(ConfigError, match='steps of warm-up = 20'):
        make_schedule(**context, warmup_iters=10, backbone_warmup_iters=10)


def test_groups_of_the_vit_stand_apart_where_it_has_its_own_schedule() -> None:
    model = nn.ModuleDict({'network': network()})
    groups = LayerDecay(full_blocks=2).groups(model)
    assert len(groups) == 2 and not any(group.backbone for group in groups)
    cut = split_backbone_groups(groups, model)
    names = {group.backbone: [] for group in cut}
    for group in cut:
        names[group.backbone] += group.names
    assert all(name.startswith('network.backbone.') for name in names[True])
    assert not any('backbone' in name for name in names[False]) and len(names[True]) + len(names[False]) == len(
        list(model.parameters())
    )
    optimizer = build_optimizer(dict(type=torch.optim.AdamW, lr=1.0), cut)
    assert [group['backbone'] for group in optimizer.param_groups] == [group.backbone for group in cut]


def test_layers_decay_as_eomt_counts_them() -> None:
    model = nn.ModuleDict({'network': network()})
    rates = {name: group.lr for group in LayerDecay(decay=0.8, full_blocks=1).groups(model) for name in group.names}
    prefix = 'network.backbone.model.'
    for block in range(4):
        assert rates[f'{prefix}blocks.{block}.mlp.fc1.weight'] == pytest.approx(0.8 ** (3 - block))
    assert rates[f'{prefix}patch_embed.proj.weight'] == pytest.approx(0.8**3)
    assert rates[f'{prefix}norm.weight'] == rates['network.q.weight'] == 1.0
    whole = LayerDecay(backbone_lr=0.1, full_blocks=2).groups(model)
    rates = {name: group.lr for group in whole for name in group.names}
    blocks = [rates[f'{prefix}blocks.{block}.mlp.fc1.weight'] for block in range(4)]
    assert blocks == pytest.approx([0.1, 0.1, 1.0, 1.0])
