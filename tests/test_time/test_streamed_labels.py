"""Labels of large images in little memory: the same labels as with all logits in memory."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import vitdense.test_time.streamed_labels as label_strips
from vitdense.errors import NumericsError
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time.sliding_window import Tiler
from vitdense.types import LabelOutputs, Meta, PixelOutputs


class Network(nn.Module):
    """A patch embedding of 8 pixels: it has context inside a window only."""

    def __init__(self, classes=20):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 24, stride=8, padding=8)

    @torch.no_grad()
    def forward(self, imgs, valid=None):
        return {'sem': PixelOutputs(self.conv(imgs), tuple(imgs.shape[-2:]))}


def labels_with_all_logits(tiler, network, imgs, metas, valid=None):
    return [actual.labels for actual in SemanticTask().predict(tiler(network, imgs, valid)['sem'], metas)]


@pytest.mark.parametrize(
    ('pixels', 'size', 'stride', 'options'),
    [
        ((104, 136), 48, 32, {}),
        ((104, 136), 48, 17, dict(batch=5)),  # a row lies in three rows of windows
        ((96, 128), 32, 32, {}),  # no overlap
        ((72, 200), (80, 48), 30, {}),  # one row of windows
        ((104, 40), 48, 24, {}),  # one column
        ((104, 136), 44, 30, dict(divisor=8, even=True)),  # windows that are padded
    ],
)
@pytest.mark.parametrize('orig', [None, (201, 119), (50, 61)])
@pytest.mark.parametrize('numbers', [1 << 25, 600])  # strips and blocks of classes in one part, and in many
def test_streamed_labels_are_those_of_all_logits(pixels, size, stride, options, orig, numbers, monkeypatch):
    monkeypatch.setattr(label_strips, 'BLOCK_NUMBERS', numbers)
    network, imgs = Network(), torch.randn(2, 3, *pixels)
    crop = (pixels[0] - 3, pixels[1] - 5)
    metas = [Meta(row, size=crop, orig_size=orig or crop) for row in range(2)]
    expected = labels_with_all_logits(Tiler(size, stride, **options), network, imgs, metas)
    output = Tiler(size, stride, accumulate='labels', **options)(network, imgs, metas=metas)['sem']
    assert isinstance(output, LabelOutputs)
    for ours, theirs in zip(output.labels, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
        assert len(ours.unique()) > 5  # not a trivial output


@pytest.mark.parametrize('numbers', [1 << 25, 600])
def test_rows_of_masks_are_those_of_all_scores(numbers, monkeypatch):
    monkeypatch.setattr(label_strips, 'BLOCK_NUMBERS', numbers)
    pixels, size, windows = (72, 104), (72, 104), Tiler(48, 28).windows((72, 104))
    strips = label_strips.LabelStrips(windows, pixels, Meta(0, size=size, orig_size=size))
    total = torch.zeros(5, *pixels)
    for top, left in windows.corners:
        probs, masks = torch.rand(7, 5), torch.randn(7, 6, 6) * 3
        strips.add(label_strips.MaskLogits(probs, masks, (48, 48)), (top, left))
        full = functional.interpolate(masks[None], (48, 48), mode='bilinear', align_corners=False)[0]
        scores = (probs[:, :, None, None] * full.sigmoid()[:, None]).sum(0)  # (K, 48, 48)
        total[:, top : top + 48, left : left + 48] += scores
    assert torch.equal(strips.labels, (total / windows.counts(pixels)).argmax(0).to(torch.uint8))
    assert len(strips.labels.unique()) == 5 and not strips.pending


def test_images_of_different_sizes_have_the_outputs_of_single_images():
    network, sizes = Network(300), [(64, 40), (40, 72)]
    imgs, valid = torch.zeros(2, 3, 64, 72), torch.zeros(2, 64, 72, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        imgs[row, :, :height, :width] = torch.randn(3, height, width)
        valid[row, :height, :width] = True
    metas = [Meta(row, size=size, orig_size=size) for row, size in enumerate(sizes)]
    output = Tiler(32, 20, accumulate='labels', divisor=8)(network, imgs, valid, metas=metas)['sem']
    for row, (height, width) in enumerate(sizes):
        alone = labels_with_all_logits(
            Tiler(32, 20, divisor=8), network, imgs[row : row + 1, :, :height, :width], metas[row : row + 1]
        )
        assert output.labels[row].dtype == torch.int16  # 300 classes
        assert torch.equal(output.labels[row], alone[0])


def test_logits_of_rows_that_are_labelled_are_forgotten():
    meta = Meta(0, size=(400, 64), orig_size=(400, 64))
    windows = Tiler(32, 20).windows((400, 64))
    strips = label_strips.LabelStrips(windows, (400, 64), meta)
    kept = []
    for corner in windows.corners:
        strips.add(label_strips.GridLogits(torch.randn(5, 4, 4), (32, 32)), corner)
        kept.append(len(strips.pending))
    assert max(kept) <= 3 * len(windows.lefts) and not strips.pending and strips.done == 400


def test_logits_that_are_not_finite_are_refused():
    def network(imgs, valid):
        return {'sem': PixelOutputs(torch.full((1, 3, 4, 4), float('nan')), tuple(imgs.shape[-2:]))}

    meta = Meta(0, size=(64, 64), orig_size=(64, 64))
    with pytest.raises(NumericsError, match='not finite'):
        Tiler(32, 20, accumulate='labels')(network, torch.zeros(1, 3, 64, 64), metas=[meta])


def test_metas_are_needed():
    with pytest.raises(ValueError, match='as many metas'):
        Tiler(32, 20, accumulate='labels')(Network(), torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is counted as Linux does')
def test_twenty_megapixels_and_150_classes_fit_into_2_5_gb():
    script = Path(__file__).parents[2] / 'benchmarks' / 'large_image.py'
    output = subprocess.run([sys.executable, script, '--depth', '1'], capture_output=True, text=True, check=True)
    actual = re.fullmatch(r'peak (\d+\.\d+) GB, \d+ s\n', output.stdout)
    assert actual and float(actual[1]) < 2.5, output.stdout


@pytest.mark.parametrize('queries', [0, 4])
def test_the_benchmark_of_a_large_image_measures_it(queries):
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / 'benchmarks' / 'large_image.py'))
    peak, seconds = benchmark['segment'](80, 100, classes=5, tile=48, depth=1, queries=queries)
    assert 2**26 < peak < 2**36 and 0 < seconds < 60
