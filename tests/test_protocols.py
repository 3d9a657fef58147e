"""A part of a user's own that lacks what its protocol lists is an error when it is built."""

import pytest
from torch import nn

from vitdense.adapters.plain import PlainMaps
from vitdense.data.datasets import build_dataset
from vitdense.data.mixture import Mixture
from vitdense.errors import ConfigError
from vitdense.loading.evaluation_sets import build_evaluators
from vitdense.networks.shared import SharedNetwork


class Backbone(nn.Module):
    embed_dim, depth, patch_size, divisor, mean, std = 8, 1, 4, 4, (0.5,) * 3, (0.2,) * 3

    def layer_of(self, name):
        return 0

    def forward(self, imgs, valid=None, *, layers):
        raise NotImplementedError


class HeadWithoutForward(nn.Module):
    def __init__(self, in_channels, strides):
        super().__init__()


class WithoutItems:
    metainfo = {'classes': {}}

    def __len__(self):
        return 1


class WithoutEvaluate:
    prefix = 'sem'

    def process(self, data_batch, data_samples):
        pass


def test_a_head_without_forward():
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=HeadWithoutForward))
    with pytest.raises(ConfigError, match='HeadWithoutForward has no forward') as caught:
        SharedNetwork(Backbone(), {'sem': branch})
    assert caught.value.where == 'network.branches.sem.head'
    assert 'vitdense.protocols.FeatureHead' in caught.value.why and caught.value.fix.startswith('add forward')


@pytest.mark.parametrize(
    'build', [build_dataset, lambda recipe: Mixture({'own': recipe})], ids=['alone', 'in a mixture']
)
def test_a_data_set_without_items(build):
    with pytest.raises(ConfigError, match='WithoutItems has no __getitem__'):
        build(dict(type=WithoutItems))


def test_a_metric_without_evaluate():
    with pytest.raises(ConfigError, match='WithoutEvaluate has no evaluate'):
        build_evaluators([dict(type=WithoutEvaluate)])
