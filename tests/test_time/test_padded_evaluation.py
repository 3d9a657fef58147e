"""Images padded by a transform: where the padding lies, what it is, and that predictions are cut to the image."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

from vitdense.data.collate import collate
from vitdense.data.transforms.common import (
    Pad,
    PhotometricDistortion,
    Pipeline,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
)
from vitdense.errors import ConfigError
from vitdense.metrics.average_precision import CocoAP
from vitdense.model import DenseModel, Preprocessor
from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time.sliding_window import Tiler
from vitdense.types import IGNORE, Meta, PixelOutputs, QueryOutputs, Sample, Target

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUARE = [dict(type=ResizeShortSide, size=32, max_size=32), dict(type=Pad, size=32)]  # as EoMT evaluates on COCO


def sample_of(height: int = 64, width: int = 128, target: Target | None = None) -> Sample:
    img = tv_tensors.Image(torch.randint(1, 256, (3, height, width), dtype=torch.uint8))
    return Sample(img, target or Target(), Meta(0, orig_size=(height, width), size=(height, width)))


class Fixed(nn.Module):
    """A network with fixed outputs, whatever its input."""

    divisor, mean, std = 16, MEAN, STD

    def __init__(self, name: str, outputs) -> None:
        super().__init__()
        self.names, self.outputs, self.recorded = (name,), outputs, []

    def forward(self, imgs: Tensor, valid: Tensor | None = None, training_inputs=None) -> dict:
        self.recorded.append((imgs, valid))
        return {self.names[0]: self.outputs(imgs) if callable(self.outputs) else self.outputs}


def test_the_image_is_at_the_upper_left_and_all_of_the_square_is_seen():
    semantic = tv_tensors.Mask(torch.zeros(64, 128, dtype=torch.uint8))
    sample = Pipeline(SQUARE)(sample_of(target=Target(semantic=semantic)))
    assert sample.img.shape == (3, 32, 32) and not sample.img[:, 16:].any() and sample.img[:, :16].all()
    assert (sample.target.semantic[16:] == IGNORE).all() and not sample.target.semantic[:16].any()
    assert sample.meta.size == (32, 32) and sample.meta.image_size == sample.meta.unpadded_size == (16, 32)
    batch = Preprocessor(MEAN, STD, divisor=16)(collate([sample]))
    assert batch.valid is None  # nothing masks the padding, as in the authors' code
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(batch.imgs[0, :, 20, 5], black)
    whole = Pipeline(SQUARE)(sample_of(40, 40))
    assert whole.meta.image_size is None and whole.meta.unpadded_size == (32, 32)


def test_padding_that_is_zero_after_normalisation():
    """mmsegmentation: ... Normalize, Pad(pad_val=0, seg_pad_val=255); it is not flipped or coloured either."""
    crop = [
        dict(type=RandomCrop, size=32, max_category_fraction=1.0, fill=None),
        dict(type=RandomFlip, probability=1.0),
        dict(type=PhotometricDistortion),
        dict(type=Pad, size=32, after_normalisation=True),
    ]
    torch.manual_seed(0)
    samples = [
        Pipeline(crop)(sample_of(20, 50)),
        Pipeline(crop)(sample_of(50, 50)),
        Pipeline(SQUARE)(sample_of(40, 80)),
    ]
    imgs, _, metas, valid = Preprocessor(MEAN, STD, divisor=16)(collate(samples))
    assert valid is None and [meta.size for meta in metas] == [(32, 32)] * 3
    assert not imgs[0, :, 20:].any() and imgs[0, :, :20].any() and imgs[1].abs().amin() > 0
    assert (imgs[2, :, 16:] < -1).all()
    blank = collate(samples).imgs.float().div(255).sub(torch.tensor(MEAN)[:, None, None])
    torch.testing.assert_close(imgs[0, :, :20], (blank / torch.tensor(STD)[:, None, None])[0, :, :20])


def test_nothing_may_follow_the_padding():
    with pytest.raises(ConfigError, match='RandomFlip follows Pad') as caught:
        Pipeline([dict(type=Pad, size=32), dict(type=RandomFlip)])
    assert 'last' in caught.value.fix


@pytest.mark.parametrize('tiled', [False, True])
def test_mask_ap_of_two_halves_is_one(tiled):
    """A 64 x 128 image, of which the network gets 16 x 32 at the top of 32 x 32: the masks of its upper and lower half
    on a grid of 4 pixels, and one that lies in the padding alone.
    """
    mask_logits = torch.full((1, 3, 8, 8), -1.0)
    mask_logits[0, 0, :2], mask_logits[0, 1, 2:4], mask_logits[0, 2, 5:] = 1.0, 1.0, 1.0
    class_logits = torch.full((1, 3, 3), -9.0)
    class_logits[0, [0, 1, 2], [0, 1, 0]] = 9.0
    outputs = QueryOutputs(
        class_logits, mask_logits=mask_logits, input_size=(32, 32), sizes=torch.tensor([[32.0, 32.0]])
    )
    masks = torch.zeros(2, 64, 128, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    boxes = torch.tensor([[0.0, 0.0, 128.0, 32.0], [0.0, 32.0, 128.0, 64.0]])
    target = Target(
        boxes=boxes,
        labels=torch.tensor([0, 1]),
        masks=masks,
        iscrowd=torch.zeros(2, dtype=torch.bool),
        area=torch.tensor([4096.0, 4096.0]),
        annotation_ids=torch.tensor([1, 2]),
    )
    classes = {'labels': ['ant', 'bee']}
    tiler = Tiler(32, 32) if tiled else None
    model = DenseModel(Fixed('det', outputs), {'det': InstanceTask(top_k=3)}, classes=classes, tiler=tiler).eval()
    sample = Pipeline(SQUARE)(sample_of())
    (prediction,) = model.val_step(collate([sample]))
    actual = prediction['det']
    assert sorted(actual.labels.tolist()) == [0, 1] and actual.masks.shape == (
        2,
        64,
        128,
    )  # that of padding is empty
    order = actual.labels.argsort()
    assert torch.equal(actual.masks[order], masks) and torch.equal(actual.boxes[order], boxes)
    metric = CocoAP(head='det', iou_type='segm')
    metric.dataset_meta = {'classes': classes, 'category_ids': {'labels': [1, 2]}}
    meta = sample.meta._replace(dataset='hand')
    metric.process(collate([sample])._replace(targets=[target], metas=[meta]), [prediction])
    scores = metric.evaluate(1)
    assert scores['det/segm/AP'] == pytest.approx(1.0)


def test_masks_are_undone_as_the_authors_undo_them():
    """tue-mps/eomt: to the square, cut to the scaled size, to the original size, each bilinear."""
    mask_logits = torch.randn(1, 5, 8, 8)
    outputs = QueryOutputs(torch.randn(1, 5, 3), mask_logits=mask_logits, input_size=(32, 32))
    sample = Pipeline(SQUARE)(sample_of(50, 83))
    full = functional.interpolate(mask_logits, (32, 32), mode='bilinear')[..., : sample.meta.image_size[0], :]
    wanted = functional.interpolate(full, (50, 83), mode='bilinear')[0]
    actual = InstanceTask(top_k=4).predict(outputs, [sample.meta])[0]
    wanted = wanted[wanted.abs().flatten(1).amin(1) > 0] > 0
    assert sample.meta.image_size == (19, 32)
    for mask in actual.masks:
        assert min(((mask != other).float().mean()) for other in wanted) < 1e-3


@pytest.mark.parametrize('name', ['pixels', 'queries'])
def test_label_maps_are_cut_to_the_image(name):
    labels = torch.arange(2).repeat_interleave(4)[:, None].expand(8, 8)  # class 1 below the image, at the 4 pixels
    logits = functional.one_hot(labels, 2).permute(2, 0, 1)[None].float()
    if name == 'pixels':
        outputs, task = PixelOutputs(logits, (32, 32)), SemanticTask()
    else:
        eye = torch.cat([9 * torch.eye(2), torch.full((2, 1), -9.0)], dim=1)[None]
        outputs, task = QueryOutputs(eye, mask_logits=18 * logits - 9, input_size=(32, 32)), MaskSemanticTask()
    sample = Pipeline(SQUARE)(sample_of())
    for tiler in (None, Tiler(32, 32), Tiler(32, 32, accumulate='labels')):
        network = Fixed('sem', outputs)
        model = DenseModel(network, {'sem': task}, classes={'semantic': ['a', 'b']}, tiler=tiler).eval()
        (prediction,) = model.val_step(collate([sample]))
        assert prediction['sem'].labels.shape == (64, 128) and not prediction['sem'].labels.any()
        assert network.recorded[0][1] is None


def test_windows_of_eomt_are_merged_by_the_mean_of_their_scores():
    """tue-mps/eomt, revert_window_logits_semantic: sums / counts of the scores, not of their logarithms."""
    probs = iter([(0.55, 0.45), (0.2, 0.8), (0.55, 0.45), (0.2, 0.8)])  # two windows that overlap, twice

    def outputs(imgs: Tensor) -> QueryOutputs:
        first, second = next(probs)
        logits = torch.tensor([[[first, second, 1e-9]]]).log()
        return QueryOutputs(logits, mask_logits=torch.full((1, 1, 8, 8), 20.0), input_size=(32, 32))

    for accumulate in ('pixels', 'labels'):
        model = DenseModel(
            Fixed('sem', outputs),
            {'sem': MaskSemanticTask()},
            classes={'semantic': ['a', 'b']},
            tiler=Tiler(32, 16, accumulate=accumulate),
        ).eval()
        (prediction,) = model.val_step(collate([sample_of(32, 48)]))
        labels = prediction['sem'].labels[0]
        assert labels[:16].tolist() == [0] * 16 and labels[16:].tolist() == [1] * 32
