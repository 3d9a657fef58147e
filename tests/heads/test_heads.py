"""Heads overfit four tiny images; published recipes are expressible; auxiliary logits; errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.heads.dpt import DPTHead
from vitdense.heads.linear import LinearHead
from vitdense.heads.upernet import UPerNetHead
from vitdense.types import Features


def pyramid(batch: int, channels: int, grid: int) -> Features:
    """Random frozen maps at strides 4, 8, 16 and 32."""
    maps = tuple(torch.randn(batch, channels, grid // step, grid // step) for step in (1, 2, 4, 8))
    return Features(maps=maps, input_size=(4 * grid, 4 * grid))


@pytest.mark.parametrize(
    'head',
    [
        lambda: LinearHead((256,) * 4, (4, 8, 16, 32), 3),
        lambda: LinearHead((256,) * 4, (4, 8, 16, 32), 3, norm='layer'),
        lambda: UPerNetHead((256,) * 4, (4, 8, 16, 32), 3, channels=16, aux_channels=8, dropout=0.0),
        lambda: UPerNetHead((256,) * 4, (4, 8, 16, 32), 3, channels=16, aux_channels=8, dropout=0.0, norm='layer'),
    ],
    ids=['linear-batch', 'linear-layer', 'upernet', 'upernet-layer'],
)
def test_a_head_overfits_four_images(head):
    head, features = head(), pyramid(4, 256, 8)
    target = torch.randint(0, 3, (4, 8, 8))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    for _ in range(60):
        outputs = head(features)
        loss = sum(
            functional.cross_entropy(functional.interpolate(logits, size=(8, 8), mode='bilinear'), target)
            for logits in (outputs.logits, *outputs.aux)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    accuracy = (head(features).logits.argmax(1) == target).float().mean()
    assert accuracy >= 0.99


def test_the_linear_recipes_are_expressible():
    kinds = {
        name: [type(part).__name__ for part in (head.norm, head.classifier)] + [head.dropout.p]
        for name, head in {
            'R1': LinearHead((8,), (14,), 5),
            'R2': LinearHead((8,), (16,), 5, dropout=0.1),
            'R8c': LinearHead((8,), (14,), 5, norm='layer'),
        }.items()
    }
    assert kinds == {
        'R1': ['BatchNorm2d', 'Conv2d', 0.0],
        'R2': ['BatchNorm2d', 'Conv2d', 0.1],
        'R8c': ['LayerNorm2d', 'Conv2d', 0.0],
    }
    head = LinearHead((768,), (16,), 150)
    assert abs(head.classifier.weight.std().item() - 0.01) < 1e-3
    assert head.classifier.bias.abs().max() == 0
    with pytest.raises(ConfigError, match="'batch', 'layer', 'none'"):
        LinearHead((8,), (16,), 5, norm='group')


def test_linear_logits_are_a_matrix_product_on_every_cell():
    head = LinearHead((8,), (16,), 5, norm='none').eval()
    x = torch.randn(2, 8, 3, 4)
    outputs = head(Features(maps=(x,), input_size=(48, 64)))
    weight, bias = head.classifier.weight[:, :, 0, 0], head.classifier.bias
    torch.testing.assert_close(outputs.logits[1, :, 2, 3], weight @ x[1, :, 2, 3] + bias)
    assert outputs.input_size == (48, 64)


def test_auxiliary_logits_come_in_training_only_from_the_chosen_map():
    features = pyramid(2, 8, 16)
    head = UPerNetHead((8,) * 4, (4, 8, 16, 32), 5, channels=8, aux_channels=8)
    assert [tuple(aux.shape) for aux in head(features).aux] == [(2, 5, 4, 4)]
    assert head.eval()(features).aux == ()
    assert tuple(head(features).logits.shape) == (2, 5, 16, 16)
    without = UPerNetHead((8,) * 4, (4, 8, 16, 32), 5, channels=8, aux_index=None)
    assert without(features).aux == () and not [name for name in without.state_dict() if name.startswith('aux')]
    lone = UPerNetHead((8,), (16,), 5, channels=8)  # fewer maps than aux_index: the coarsest one is read
    assert [tuple(aux.shape) for aux in lone(Features(maps=features.maps[:1], input_size=(64, 64))).aux] == [
        (2, 5, 16, 16)
    ]


def test_one_cell_of_one_image_is_an_error_of_every_batch_norm():
    head, one = LinearHead((8,), (16,), 5), Features(maps=(torch.randn(1, 8, 1, 1),), input_size=(16, 16))
    with pytest.raises(ConfigError, match='one value per channel'):
        head(one)
    assert head.eval()(one).logits.shape == (1, 5, 1, 1)
    assert head.train()(Features(maps=(torch.randn(2, 8, 1, 1),), input_size=(16, 16))).logits.shape == (2, 5, 1, 1)


def test_one_image_pooled_to_one_cell_is_an_error_with_a_cure():
    head = UPerNetHead((8,) * 4, (4, 8, 16, 32), 5, channels=8)
    with pytest.raises(ConfigError, match='one value per channel') as caught:
        head(pyramid(1, 8, 16))
    assert 'batch of at least 2' in caught.value.fix
    assert head.eval()(pyramid(1, 8, 16)).logits.shape == (1, 5, 16, 16)


def test_batch_norms_can_be_made_synchronous():
    head = nn.SyncBatchNorm.convert_sync_batchnorm(UPerNetHead((8,) * 4, (4, 8, 16, 32), 5, channels=8))
    assert not [module for module in head.modules() if type(module) is nn.BatchNorm2d]


@pytest.mark.parametrize('kind', [UPerNetHead, DPTHead])
def test_with_layer_norm_no_image_changes_the_output_of_another(kind):
    head, features = kind((8,) * 4, (4, 8, 16, 32), 3, channels=8, dropout=0.0, norm='layer'), pyramid(2, 8, 8)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
    alone = head(features._replace(maps=tuple(x[:1] for x in features.maps)))  # in training, one image
    both = head(features)
    torch.testing.assert_close(both.logits[:1], alone.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.aux[0][:1], alone.aux[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="'batch', 'layer'"):
        kind((8,), (4,), 3, norm='group')
