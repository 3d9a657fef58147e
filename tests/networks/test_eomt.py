"""EoMT: padding without effect, masked attention, gradients, weights, export, and overfitting a few images."""

import pytest
import torch
from torch import nn

from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.collate import collate
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import ResizeShortSide
from vitdense.data.transforms.detection import LargeScaleJitter
from vitdense.errors import ConfigError
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.eomt import EoMT
from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.tasks.mask_matching import MaskMatcher
from vitdense.test_time.sliding_window import Tiler
from vitdense.test_time.streamed_labels import LabelStrips
from vitdense.types import Meta

SMALL = dict(depth=3, embed_dim=48, num_heads=3)
VITS = {
    'plain': dict(name='vit_tiny_patch16_224'),
    'registers': dict(name='vit_small_patch14_reg4_dinov2', img_size=112),
    'rope': dict(name='vit_small_patch16_dinov3'),
}


def network(kind: str = 'plain', num_blocks: int = 2, **options) -> EoMT:
    torch.manual_seed(0)
    vit = ViT(timm_args=SMALL, **VITS[kind])
    created = EoMT(vit, num_queries=5, num_blocks=num_blocks, num_classes={'sem': 4}, **options)
    for name, parameter in created.named_parameters():
        if 'backbone' not in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # masks that cover something, but not everything
    return created


@pytest.mark.parametrize('kind', VITS)
@pytest.mark.parametrize('shares', [(0.0, 0.0), (0.5, 1.0)])
def test_a_padded_batch_has_the_outputs_of_its_images_alone(kind: str, shares: tuple[float, float]) -> None:
    model = network(kind).eval()
    model.set_masking(shares)
    cell = model.divisor
    sizes = [(4 * cell, 3 * cell), (3 * cell, 5 * cell), (2 * cell, 2 * cell)]
    imgs = torch.randn(3, 3, 4 * cell, 5 * cell)  # padding holds noise: it must not be read
    valid = torch.zeros(3, 4 * cell, 5 * cell, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        valid[row, :height, :width] = True
    with torch.no_grad():
        batched = model(imgs, valid)['sem']
        for row, (height, width) in enumerate(sizes):
            alone = model(imgs[row : row + 1, :, :height, :width])['sem']
            rows, columns = alone.mask_logits.shape[-2:]
            part = batched.mask_logits[row, :, :rows, :columns]
            assert (batched.class_logits[row] - alone.class_logits[0]).abs().max() < 1e-4
            assert (part - alone.mask_logits[0]).abs().max() / part.abs().max() < 1e-4
            assert torch.equal(batched.mask_logits[row, :, :rows, -1], batched.mask_logits[row, :, :rows, columns - 1])
            assert batched.sizes[row].tolist() == alone.sizes[0].tolist() == [height, width]


def test_a_query_attends_to_its_mask_the_other_queries_and_the_prefix() -> None:
    model = network('registers').eval()
    tokens = model.backbone.insert(model.backbone.embed(torch.randn(1, 3, 42, 56)), torch.zeros(1, 5, 48))
    masks = torch.full((1, 5, 6, 8), -1.0)
    masks[0, 2, :2, :4] = 1.0  # the first two patches of the first row
    recorded = model._attention(tokens, masks, torch.tensor(1.0))[0, 0]
    assert recorded.shape == (5 + 5 + 12, 22)
    assert recorded[:, :10].all() and recorded[:5].all() and recorded[10:].all()
    assert recorded[5:10, 10:].nonzero().tolist() == [[2, 0], [2, 1]]
    half = model._attention(tokens, masks, torch.tensor(0.5))[0, 0, 5:10, 10:]
    assert half.all(1).sum() in (2, 3)  # queries that are free


def test_training_draws_which_queries_are_masked_and_evaluation_does_not() -> None:
    model, imgs = network(), torch.randn(2, 3, 64, 64)
    model.set_masking((0.5, 0.5))
    with torch.no_grad():
        first, second = (model.eval()(imgs)['sem'] for _ in range(2))
        assert torch.equal(first.mask_logits, second.mask_logits) and first.aux == ()
        first, second = (model.train()(imgs)['sem'] for _ in range(2))
    assert not torch.equal(first.mask_logits, second.mask_logits) and len(first.aux) == 2


@pytest.mark.parametrize('shares', [(0.0, 0.0), (0.7, 1.0)])
def test_backward_reaches_every_parameter(shares: tuple[float, float]) -> None:
    model = network('rope').train()
    model.set_masking(shares)
    outputs = model(torch.randn(2, 3, 64, 64))['sem']
    layers = (outputs, *outputs.aux)
    sum(layer.class_logits.square().sum() + layer.mask_logits.square().mean() for layer in layers).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_weights_say_how_much_is_masked() -> None:
    trained, fresh = network(), network()
    trained.set_masking((0.0, 0.25))
    holder = nn.ModuleDict({'network': fresh})
    holder.load_state_dict({f'network.{name}': value for name, value in trained.state_dict().items()})
    assert fresh._masked == (False, True) and fresh.attn_mask_probs.tolist() == [0.0, 0.25]
    with pytest.raises(ValueError, match='as many shares'):
        fresh.set_masking((0.5,))


@pytest.mark.parametrize('patch, upscales', [(16, 2), (14, 1), (8, 1)])
def test_masks_have_a_stride_near_4(patch: int, upscales: int) -> None:
    vit = ViT('vit_tiny_patch16_224', patch_size=patch, timm_args=SMALL)
    assert len(EoMT(vit, num_blocks=1, num_classes={'sem': 2}).upscale) == upscales


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match='num_blocks = 9'):
        network(num_blocks=9)
    with pytest.raises(ConfigError, match='EoMT.name'):
        network(name='other')
    vit = ViT('vit_tiny_patch16_224', windows=WindowPartition(size=4, global_blocks=1), timm_args=SMALL)
    with pytest.raises(ConfigError, match='attend within windows'):
        EoMT(vit, num_blocks=2, num_classes={'sem': 2})


class Exported(nn.Module):
    def __init__(self, model: EoMT) -> None:
        super().__init__()
        self.model = model

    def forward(self, imgs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(imgs)['sem']
        return outputs.class_logits, outputs.mask_logits


@pytest.mark.parametrize('shares', [(0.0, 0.0), (0.5, 1.0)])
def test_exports_for_other_batches_and_sizes(shares: tuple[float, float]) -> None:
    model = Exported(network('plain')).eval()
    model.model.set_masking(shares)
    side = {axis: 16 * torch.export.Dim(name, min=2, max=20) for axis, name in ((2, 'rows'), (3, 'columns'))}
    free = {0: torch.export.Dim('batch', min=1, max=4), **side}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={'imgs': free}).module()
    imgs = torch.randn(3, 3, 112, 48)
    torch.testing.assert_close(program(imgs), model(imgs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('orig', [(96, 128), (61, 150)])
def test_streamed_labels_are_those_of_all_scores_and_windows_are_forgotten(orig, monkeypatch) -> None:
    kept, add = [], LabelStrips.add

    def counted(strips: LabelStrips, *window) -> None:
        add(strips, *window)
        kept.append(len(strips.pending))

    monkeypatch.setattr(LabelStrips, 'add', counted)
    classes = {'semantic': ['a', 'b', 'c', 'd']}
    model = DenseModel(network(), {'sem': MaskSemanticTask()}, classes=classes).eval()
    meta, labels = Meta(0, size=(160, 126), orig_size=orig), {}
    imgs = torch.randn(1, 3, 160, 128)
    for accumulate in ('pixels', 'labels'):
        model.tiler = Tiler(48, 32, batch=3, accumulate=accumulate, divisor=16)
        with torch.inference_mode():
            labels[accumulate] = model(imgs, metas=[meta], mode='predict')[0]['sem'].labels
    assert torch.equal(*labels.values()) and labels['labels'].shape == orig and len(labels['labels'].unique()) > 1
    rows = len(model.tiler.windows((160, 128)).lefts)
    assert max(kept) <= 2 * rows < len(kept) and kept[-1] == 0


def by_heart(name: str, task, classes: dict[str, list[str]], batch, steps: int) -> DenseModel:
    """Return a tiny EoMT that was trained on one batch."""
    torch.manual_seed(0)
    args = dict(embed_dim=64, depth=3, num_heads=4)
    vit = ViT('vit_tiny_patch16_224', patch_size=8, img_size=64, stem='conv', timm_args=args)
    created = EoMT(vit, num_queries=8, num_blocks=2, name=name, num_classes={name: len(classes[task.field])})
    model = DenseModel(created, {name: task}, classes=classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    warm = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        created.set_masking([max(0.0, 1 - 2 * step / steps)] * 2)
        loss, _ = model.parse_losses(model(*model.data_preprocessor(batch, True), mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
    return model.eval()


LOSSES = MaskLoss(matcher=MaskMatcher(num_points=128), num_points=128)


@pytest.fixture(scope='module')
def images():
    data = ShapesScenes(4, size=64, split='val', num_objects=(2, 3), radius=(9, 16), evaluation=True)
    return data.metainfo, collate([data[index] for index in range(4)])


def test_four_images_are_overfitted_as_instances(images) -> None:
    metainfo, batch = images
    scores = []
    for steps in (2, 100):
        model = by_heart('det', InstanceTask(losses=LOSSES, top_k=10), metainfo['classes'], batch, steps)
        metric = CocoAP(head='det', iou_type='segm')
        metric.dataset_meta = metainfo
        with torch.inference_mode():
            metric.process(batch, model.val_step(batch))
        scores.append(metric.evaluate(4)['det/segm/AP'])
    assert scores[0] < 0.1 and scores[1] > 0.7


def test_four_images_are_overfitted_as_label_maps(images) -> None:
    metainfo, batch = images
    model = by_heart('sem', MaskSemanticTask(losses=LOSSES), metainfo['classes'], batch, 80)
    predictions = {}
    for tiler in (None, Tiler(48, 16, divisor=8), Tiler(64, 64, divisor=8)):
        model.tiler = tiler
        metric = MeanIoU(head='sem', classes=metainfo['classes']['semantic'])
        with torch.inference_mode():
            metric.process(batch, model.val_step(batch))
        predictions[tiler] = metric.evaluate(4)['sem/mIoU']
    whole, windows, one_window = predictions.values()
    assert whole > 0.9 and one_window == pytest.approx(whole, abs=0.02) and windows > 0.3


def test_real_images_with_polygons_and_crowds_train_and_are_scored(shared) -> None:
    """COCO's own polygons and run lengths, jittered along with the image; predictions in the original size."""
    context = dict(images='val2017', root=shared / 'coco_mini480', masks=True, skip_unmasked=True, cache=False)
    where = 'annotations/instances_val2017.json'
    jitter = dict(type=LargeScaleJitter, size=96, ratio=(0.5, 1.5))
    train = CocoDetection(where, **context, transforms=[jitter])
    val = CocoDetection(
        where, **context, transforms=[dict(type=ResizeShortSide, size=96, max_size=96)], evaluation=True
    )
    crowded = [row for row in range(len(train)) if val[row].target.iscrowd.any()][:1]
    rows = [*crowded, len(train) - 2, len(train) - 1]
    vit = ViT(timm_args=SMALL, **VITS['plain'])
    created = EoMT(vit, num_queries=9, num_blocks=1, name='det', num_classes={'det': 80})
    model = DenseModel(created, {'det': InstanceTask(losses=LOSSES, top_k=5)}, classes=train.metainfo['classes'])
    loss, _ = model.parse_losses(
        model(*model.data_preprocessor(collate([train[row] for row in rows]), True), mode='loss')
    )
    assert crowded and loss.isfinite()
    batch = collate([val[row] for row in rows])
    metric = CocoAP(head='det', iou_type='segm')
    metric.dataset_meta = val.metainfo
    with torch.inference_mode():
        predictions = model.eval().val_step(batch)
        metric.process(batch, predictions)
    for output, target in zip(predictions, batch.targets, strict=True):
        assert output['det'].masks.shape[1:] == target.masks.shape[1:]
    assert 0 <= metric.evaluate(3)['det/segm/AP'] < 0.5
