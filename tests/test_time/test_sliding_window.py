"""Sliding windows against a plain loop, and images that do not fit the windows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.test_time.sliding_window import Tiler
from vitdense.types import ClassOutputs, PixelOutputs, QueryOutputs


class Network(nn.Module):
    """A patch embedding: it has context inside a window only, and refuses sides that are not whole patches."""

    def __init__(self, patch=8, classes=5):
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(3, classes, 3 * patch, stride=patch, padding=patch)
        self.calls = []

    @torch.no_grad()
    def forward(self, imgs, valid=None):
        assert valid is None and imgs.shape[-1] % self.patch == imgs.shape[-2] % self.patch == 0
        self.calls.append(tuple(imgs.shape))
        logits = self.conv(imgs)
        return {'sem': PixelOutputs(logits, tuple(imgs.shape[-2:])), 'cls': ClassOutputs(logits.mean((2, 3)))}


def _slide(network, imgs, crop, stride):
    """The protocol of mmsegmentation: windows at multiples of the stride, the last one moved back to the border."""
    height, width = imgs.shape[-2:]
    total = count = 0
    for row in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + crop[0], height), min(column * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            window = imgs[:, :, top:bottom, left:right]
            logits = network(window)['sem'].logits
            logits = functional.interpolate(logits, window.shape[-2:], mode='bilinear', align_corners=False)
            border = (left, width - right, top, height - bottom)
            total = total + functional.pad(logits, border)
            count = count + functional.pad(torch.ones_like(logits), border)
    return total / count


@pytest.mark.parametrize(
    ('pixels', 'crop', 'stride'),
    [
        ((64, 64), (32, 32), (21, 21)),
        ((72, 40), (32, 24), (24, 16)),
        ((32, 80), (32, 32), (32, 32)),
        ((24, 80), (32, 32), (16, 16)),  # lower than a window
        ((16, 16), (32, 32), (16, 16)),  # smaller than a window
    ],
)
@pytest.mark.parametrize('batch', [1, 3])
def test_equals_the_plain_loop(pixels, crop, stride, batch):
    network, imgs = Network(), torch.randn(2, 3, *pixels)
    output = Tiler(crop, stride, batch=batch, divisor=8)(network, imgs)['sem']
    assert output.input_size == pixels
    assert torch.allclose(output.logits, _slide(network, imgs, crop, stride), atol=1e-6)


def test_one_window_at_a_time_is_bit_equal_to_the_plain_loop():
    network, imgs = Network(), torch.randn(1, 3, 64, 72)
    assert torch.equal(Tiler(32, 24)(network, imgs)['sem'].logits, _slide(network, imgs, (32, 32), (24, 24)))


def test_windows_are_batched():
    network, imgs = Network(), torch.randn(2, 3, 64, 64)
    Tiler(32, 16, batch=4)(network, imgs)
    assert network.calls == [(8, 3, 32, 32), (8, 3, 32, 32), (2, 3, 32, 32)]


def test_even_windows_reach_both_borders():
    windows = Tiler(32, 20, even=True).windows((32, 80))
    assert windows.tops == [0] and windows.lefts == [0, 16, 32, 48]
    assert Tiler(32, 20).windows((32, 80)).lefts == [0, 20, 40, 48]


def test_windows_that_are_no_whole_patches_are_padded():
    network, imgs = Network(), torch.randn(1, 3, 48, 48)
    output = Tiler(30, 18, divisor=8)(network, imgs)['sem']
    assert set(network.calls) == {(1, 3, 32, 32)}
    window = functional.pad(imgs[..., 18:, :30], (0, 2, 0, 2))
    logits = functional.interpolate(network(window)['sem'].logits, (32, 32), mode='bilinear')
    corner = output.logits[..., 30:, :18]  # only this window covers these pixels
    assert torch.allclose(corner, logits[..., 12:30, :18], atol=1e-6)


def test_logits_are_averaged_on_the_grid_of_the_network():
    network, imgs = Network(), torch.randn(2, 3, 64, 96)
    output = Tiler(30, 20, accumulate='logits', divisor=8, batch=2)(network, imgs)['sem']
    assert output.logits.shape == (2, 5, 8, 12) and output.input_size == (64, 96)
    total, count = torch.zeros(2, 5, 8, 12), torch.zeros(8, 12)
    for top in (0, 16, 32):  # 20 and 32 pixels, rounded down to cells
        for left in (0, 16, 40, 56, 64):
            window = imgs[..., top : top + 32, left : left + 32]
            total[..., top // 8 : top // 8 + 4, left // 8 : left // 8 + 4] += network(window)['sem'].logits
            count[top // 8 : top // 8 + 4, left // 8 : left // 8 + 4] += 1
    assert torch.allclose(output.logits, total / count, atol=1e-6)


@pytest.mark.parametrize('accumulate', ['pixels', 'logits'])
def test_a_image_of_one_window_is_the_network_itself(accumulate):
    network, imgs = Network(), torch.randn(2, 3, 24, 32)
    outputs, direct = Tiler(32, 16, accumulate=accumulate, divisor=8)(network, imgs), network(imgs)
    expected = direct['sem'].logits
    if accumulate == 'pixels':
        expected = functional.interpolate(expected, (24, 32), mode='bilinear', align_corners=False)
    assert torch.allclose(outputs['sem'].logits, expected)
    assert torch.allclose(outputs['cls'].logits, direct['cls'].logits)


def test_every_pixel_is_covered():
    for pixels in ((40, 40), (96, 104), (104, 248)):
        for accumulate in ('pixels', 'logits'):
            for even in (False, True):
                tiler = Tiler(30, 30, accumulate=accumulate, even=even, divisor=8)
                windows = tiler.windows(pixels)
                for starts, side, whole in zip(windows[1:], windows.size, pixels, strict=True):
                    covered = {pixel for start in starts for pixel in range(start, start + side)}
                    assert covered == set(range(whole))


@pytest.mark.parametrize('accumulate', ['pixels', 'logits'])
def test_images_of_different_sizes_have_the_outputs_of_single_images(accumulate):
    network, sizes = Network(), [(64, 40), (30, 72), (20, 20)]
    imgs, valid = torch.zeros(3, 3, 64, 72), torch.zeros(3, 64, 72, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        imgs[row, :, :height, :width] = torch.randn(3, height, width)
        valid[row, :height, :width] = True
    tiler = Tiler(32, 16, accumulate=accumulate, divisor=8)
    together = tiler(network, imgs, valid)
    assert together['sem'].input_size == (64, 72)
    for row, size in enumerate(sizes):
        height, width = (-(-side // 8) * 8 for side in size)
        alone = tiler(network, imgs[row : row + 1, :, :height, :width])
        full = functional.interpolate(together['sem'].logits[row : row + 1], (64, 72), mode='bilinear')
        expected = functional.interpolate(alone['sem'].logits, (height, width), mode='bilinear')
        assert torch.allclose(full[..., :height, :width], expected, atol=1e-6)
        assert torch.allclose(together['cls'].logits[row], alone['cls'].logits[0], atol=1e-6)


def test_queries_cannot_be_blended():
    def network(imgs, valid):
        return {'det': QueryOutputs(torch.zeros(len(imgs), 4, 3))}

    with pytest.raises(ConfigError, match="'det' are QueryOutputs") as caught:
        Tiler(32, 16)(network, torch.zeros(1, 3, 64, 64))
    assert caught.value.fix


def test_a_grid_that_does_not_fit_the_cells_is_refused():
    def network(imgs, valid):
        return {'sem': PixelOutputs(torch.zeros(len(imgs), 3, 7, 7), tuple(imgs.shape[-2:]))}

    with pytest.raises(ConfigError, match='between cells of'):
        Tiler(32, 16, accumulate='logits', divisor=8)(network, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    'arguments',
    [
        dict(size=32, stride=33),
        dict(size=32, stride=0),
        dict(size=(32, 32, 32), stride=16),
        dict(size=32, stride=16, batch=0),
        dict(size=32, stride=16, accumulate='votes'),
    ],
)
def test_wrong_arguments_are_errors_now(arguments):
    with pytest.raises(ConfigError) as caught:
        Tiler(**arguments)
    assert caught.value.fix
