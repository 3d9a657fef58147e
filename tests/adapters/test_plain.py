"""PlainMaps hands over maps of layers as they are."""

import pytest
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.types import Features, LayerRequest


def features(count: int) -> Features:
    return Features(
        layers=tuple(torch.randn(2, 8, 3, 5) for _ in range(count)), cls=(torch.ones(2, 8),), input_size=(48, 80)
    )


def test_one_map_for_each_layer():
    adapter = PlainMaps(8, 16, layers=(1, -1))
    assert adapter.layers == (LayerRequest(1, True), LayerRequest(-1, True))
    assert (adapter.out_channels, adapter.strides) == ((8, 8), (16.0, 16.0))
    recorded = features(2)
    got = adapter(recorded, torch.empty(0))
    assert got.maps == recorded.layers
    assert (got.layers, got.cls, got.input_size) == (recorded.layers, recorded.cls, recorded.input_size)


def test_concatenated_along_channels_without_the_final_norm():
    adapter = PlainMaps(8, 14, layers=(0, 1, 2), normed=False, concat=True)
    assert {request.normed for request in adapter.layers} == {False}
    assert (adapter.out_channels, adapter.strides) == ((24,), (14.0,))
    recorded = features(3)
    (got,) = adapter(recorded, torch.empty(0)).maps
    assert torch.equal(got[:, 8:16], recorded.layers[1])


def test_no_layer_is_an_error():
    with pytest.raises(ValueError, match='at least one layer'):
        PlainMaps(8, 16, layers=())
