"""Test-time augmentation against a plain loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.test_time.sliding_window import Tiler
from vitdense.test_time.tta import TestTimeAugmentation
from vitdense.types import ClassOutputs, PixelOutputs, QueryOutputs


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 8, stride=8)
        self.sizes = []

    @torch.no_grad()
    def forward(self, imgs, valid=None):
        self.sizes.append(tuple(imgs.shape[-2:]))
        logits = self.conv(imgs) * 3
        return {'sem': PixelOutputs(logits, tuple(imgs.shape[-2:])), 'cls': ClassOutputs(logits.mean((2, 3)))}


def test_probabilities_are_averaged_over_scales_and_mirror_images():
    network, imgs = Network(), torch.randn(2, 3, 32, 48)
    outputs = TestTimeAugmentation((0.5, 1.0, 1.4), divisor=8)(network, imgs, None)
    assert network.sizes == [(16, 24)] * 2 + [(32, 48)] * 2 + [(48, 64)] * 2  # 1.4 x 32 = 44.8, 1.4 x 48 = 67.2
    pixels, images = [], []
    for size in ((16, 24), (32, 48), (48, 64)):
        scaled = functional.interpolate(imgs, size, mode='bilinear', antialias=True) if size != (32, 48) else imgs
        if size == (48, 64):
            scaled = functional.interpolate(imgs, size, mode='bilinear')
        for flip in (False, True):
            output = network(scaled.flip(-1) if flip else scaled)
            logits = output['sem'].logits.flip(-1) if flip else output['sem'].logits
            pixels.append(functional.interpolate(logits, (32, 48), mode='bilinear').softmax(1))
            images.append(output['cls'].logits.softmax(1))
    assert outputs['sem'].input_size == (32, 48)
    assert torch.allclose(outputs['sem'].logits.exp(), torch.stack(pixels).mean(0), atol=1e-6)
    assert torch.allclose(outputs['cls'].logits.exp(), torch.stack(images).mean(0), atol=1e-6)


def test_one_scale_without_flip_keeps_the_labels():
    network, imgs = Network(), torch.randn(1, 3, 32, 48)
    outputs = TestTimeAugmentation([1.0], flip=False)(network, imgs)
    direct = functional.interpolate(network(imgs)['sem'].logits, (32, 48), mode='bilinear')
    assert torch.equal(outputs['sem'].logits.argmax(1), direct.argmax(1))
    assert torch.allclose(outputs['sem'].logits, direct.log_softmax(1), atol=1e-5)


def test_mirrored_images_get_mirrored_outputs():
    network, imgs = Network(), torch.randn(1, 3, 32, 48)
    tta = TestTimeAugmentation([1.0, 1.5], divisor=8)
    logits, mirrored = tta(network, imgs)['sem'].logits, tta(network, imgs.flip(-1))['sem'].logits
    assert torch.allclose(logits, mirrored.flip(-1), atol=1e-5)


def test_certain_outputs_stay_finite():
    def network(imgs, valid):
        logits = torch.zeros(len(imgs), 3, 2, 2)
        logits[:, 0] = 1000.0
        return {'sem': PixelOutputs(logits, tuple(imgs.shape[-2:]))}

    assert TestTimeAugmentation([1.0])(network, torch.zeros(1, 3, 8, 8))['sem'].logits.isfinite().all()


def test_works_with_windows_and_with_images_of_different_sizes():
    network, tta, tiler = Network(), TestTimeAugmentation([1.0, 1.5], divisor=8), Tiler(32, 16, divisor=8)
    imgs, valid = torch.randn(2, 3, 40, 48), torch.ones(2, 40, 48, dtype=torch.bool)
    valid[0, 24:] = False
    valid[1, :, 31:] = False

    def tiled(imgs, valid):
        return tiler(network, imgs, valid)

    together = tta(tiled, imgs, valid)['sem'].logits
    assert together.shape == (2, 5, 40, 48)
    assert torch.allclose(together[:1, :, :24], tta(tiled, imgs[:1, :, :24])['sem'].logits, atol=1e-5)
    assert torch.allclose(together[1:, ..., :32], tta(tiled, imgs[1:, ..., :32])['sem'].logits, atol=1e-5)


def test_queries_cannot_be_averaged():
    def network(imgs, valid):
        return {'det': QueryOutputs(torch.zeros(len(imgs), 4, 3))}

    with pytest.raises(ConfigError, match='QueryOutputs'):
        TestTimeAugmentation([1.0])(network, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize('scales', [[], [0.0], [1.0, -1]])
def test_wrong_scales_are_errors_now(scales):
    with pytest.raises(ConfigError) as caught:
        TestTimeAugmentation(scales)
    assert caught.value.fix
