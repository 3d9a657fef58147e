"""SharedNetwork: one backbone call, each branch gets its own layers, sizes are passed on, contradictions are errors."""

import pytest
import torch
from torch import Tensor, nn

from vitdense.adapters.plain import PlainMaps
from vitdense.errors import ConfigError
from vitdense.heads.linear import LinearHead
from vitdense.networks.shared import SharedNetwork
from vitdense.types import Features, PixelOutputs


class CountedBackbone(nn.Module):
    """Eight channels, three blocks, patches of 4: the map of block i holds i everywhere, and i + 0.5 when normed."""

    embed_dim, depth, patch_size, divisor = 8, 3, 4, 4
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def forward(self, imgs: Tensor, valid: Tensor | None = None, *, layers) -> Features:
        self.calls.append((layers, valid))
        grid = (imgs.shape[-2] // 4, imgs.shape[-1] // 4)
        values = [request.index + 0.5 * request.normed for request in layers]
        return Features(
            layers=tuple(torch.full((len(imgs), 8, *grid), value) for value in values),
            cls=tuple(torch.full((len(imgs), 8), value) for value in values),
            valid=valid,
            input_size=tuple(imgs.shape[-2:]),
        )


class EchoHead(nn.Module):
    """Keeps its inputs; takes denoising queries."""

    def __init__(self, in_channels, strides, num_classes: int) -> None:
        super().__init__()
        self.context = (tuple(in_channels), tuple(strides), num_classes)

    def forward(self, features: Features, denoising_queries=None) -> PixelOutputs:
        self.recorded, self.denoising_queries = features, denoising_queries
        return PixelOutputs(features.maps[0], features.input_size)


def plain(*layers: int, **arguments) -> dict:
    return dict(type=PlainMaps, layers=layers, **arguments)


def branch(adapter: dict, **arguments) -> dict:
    return dict(adapter=adapter, head=dict(type=EchoHead, **arguments))


def values(features: Features) -> list[float]:
    return [layer.mean().item() for layer in features.layers]


def test_three_branches_cost_one_backbone_call_over_the_union_of_their_layers():
    branches = {'a': branch(plain(-1, 0)), 'b': branch(plain(0, 2)), 'c': branch(plain(2, normed=False))}
    network = SharedNetwork(CountedBackbone(), branches, num_classes=dict(a=2, b=3, c=4))
    outputs = network(torch.rand(2, 3, 8, 12))
    assert list(outputs) == ['a', 'b', 'c'] == list(network.names)
    assert len(network.backbone.calls) == 1
    requested = network.backbone.calls[0][0]
    assert sorted(requested) == [(0, True), (2, False), (2, True)]  # -1 and 2 are one block, asked once


def test_each_branch_gets_only_its_own_layers_in_its_own_order():
    branches = {'a': branch(plain(-1, 0)), 'b': branch(plain(0, 2)), 'c': branch(plain(2, normed=False))}
    network = SharedNetwork(CountedBackbone(), branches, num_classes=dict(a=2, b=3, c=4))
    network(torch.rand(2, 3, 8, 12))
    recorded = {name: network.heads[name].recorded for name in network.names}
    assert {name: values(features) for name, features in recorded.items()} == {
        'a': [2.5, 0.5],
        'b': [0.5, 2.5],
        'c': [2.0],
    }
    assert [cls.mean().item() for cls in recorded['a'].cls] == [2.5, 0.5]
    assert recorded['a'].input_size == (8, 12)


def test_facts_flow_from_the_backbone_to_the_adapter_to_the_head():
    network = SharedNetwork(CountedBackbone(), {'a': branch(plain(0, 1, 2, concat=True))}, num_classes=dict(a=7))
    assert network.heads['a'].context == ((24,), (4.0,), 7)
    assert (network.divisor, network.mean, network.std) == (4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_hints_reach_only_the_branch_they_are_for():
    branches = {'a': branch(plain(0)), 'b': dict(adapter=plain(0), head=dict(type=LinearHead))}
    network = SharedNetwork(CountedBackbone(), branches, num_classes=dict(a=2, b=2))
    network(torch.rand(1, 3, 8, 8), training_inputs={'a': 'queries'})
    assert network.heads['a'].denoising_queries == 'queries'
    network(torch.rand(1, 3, 8, 8))
    assert network.heads['a'].denoising_queries is None


def test_a_image_ends_at_a_whole_cell_for_every_part():
    network = SharedNetwork(CountedBackbone(), {'a': branch(plain(0))}, num_classes=dict(a=2))
    valid = torch.zeros(1, 8, 12, dtype=torch.bool)
    valid[0, :3, :5] = True
    network(torch.rand(1, 3, 8, 12), valid)
    assert network.backbone.calls[0][1][0].nonzero().amax(0).tolist() == [3, 7]  # 3 x 5 pixels are 1 x 2 cells of 4
    assert network.heads['a'].recorded.valid is network.backbone.calls[0][1]


def test_parts_may_be_built_already():
    head = LinearHead((8,), (4.0,), 5)
    network = SharedNetwork(CountedBackbone(), {'a': dict(adapter=PlainMaps(8, 4), head=head)}, num_classes=dict(a=5))
    assert network.heads['a'] is head
    assert network(torch.rand(1, 3, 8, 8))['a'].logits.shape == (1, 5, 2, 2)


class Unbuildable(nn.Module):
    """Stands for weights that must not be made before the config is known to be right."""

    def __init__(self) -> None:
        raise AssertionError('built before the check')


def test_contradicting_num_classes_is_an_error_naming_both_before_anything_is_built():
    with pytest.raises(ConfigError, match=r'num_classes = 19') as caught:
        SharedNetwork(dict(type=Unbuildable), {'sem': branch(plain(0), num_classes=19)}, num_classes=dict(sem=150))
    assert 'branches.sem' in caught.value.where and 'remove num_classes=19' in caught.value.fix
    with pytest.raises(ConfigError, match=r'num_classes = 5'):
        part = dict(adapter=plain(0), head=LinearHead((8,), (4.0,), 5))
        SharedNetwork(dict(type=Unbuildable), {'sem': part}, num_classes=dict(sem=6))


def test_agreeing_or_lone_num_classes_is_taken():
    for context in (dict(sem=19), {}):
        network = SharedNetwork(CountedBackbone(), {'sem': branch(plain(0), num_classes=19)}, num_classes=context)
        assert network.heads['sem'].context[2] == 19


@pytest.mark.parametrize(
    ('branches', 'num_classes', 'message'),
    [
        ({'sem': branch(plain(0))}, {}, 'their number is unknown'),
        ({'sem': branch(plain(0))}, dict(sam=2), "num_classes = 'sam'"),
        ({}, {}, 'at least one branch'),
        ({'sem': dict(adapter=plain(0))}, dict(sem=2), "no 'head'"),
        ({'sem': dict(adaptor=plain(0), head=dict(type=EchoHead))}, dict(sem=2), "did you mean 'adapter'"),
    ],
)
def test_wrong_branches_are_errors_with_a_cure_before_anything_is_built(branches, num_classes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        SharedNetwork(dict(type=Unbuildable), branches, num_classes=num_classes)
    assert caught.value.fix


@pytest.mark.parametrize('layer', [3, -4])
def test_a_layer_that_the_backbone_does_not_have_is_an_error(layer):
    with pytest.raises(ConfigError, match=f'layer = {layer}'):
        SharedNetwork(CountedBackbone(), {'sem': branch(plain(layer))}, num_classes=dict(sem=2))


class MovingBackbone(CountedBackbone):
    """A CountedBackbone with a weight, batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1, 1))
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.5)

    def layer_of(self, name: str) -> int:
        return 0

    def forward(self, imgs: Tensor, valid: Tensor | None = None, *, layers) -> Features:
        features = super().forward(imgs, valid, layers=layers)
        return features._replace(layers=tuple(self.dropout(self.norm(x * self.weight)) for x in features.layers))


def test_one_branch_learns_and_all_else_rests():
    branches = {
        'old': dict(adapter=plain(2), head=dict(type=LinearHead, norm='batch', dropout=0.5)),
        'new': dict(adapter=plain(0), head=dict(type=LinearHead, norm='batch')),
    }
    network = SharedNetwork(MovingBackbone(), branches, num_classes=dict(old=2, new=3)).eval()
    imgs = torch.rand(2, 3, 8, 8)
    before = network(imgs)['old'].logits
    network.freeze_except('new')
    network.train()
    assert {name for name, x in network.named_parameters() if x.requires_grad} == {
        f'heads.new.{name}' for name, _ in network.heads['new'].named_parameters()
    }
    outputs = network(imgs)
    assert list(outputs) == ['new'] and network.backbone.calls[-1][0] == ((0, True),)  # no block above is run
    assert not network.backbone.training and not network.heads['old'].training and network.heads['new'].training
    outputs['new'].logits.square().sum().backward()
    network.eval()
    assert torch.equal(network(imgs)['old'].logits, before)
