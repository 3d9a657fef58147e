"""RF-DETR's own package, where it is installed (`pip install rfdetr`): its nano model with random weights, and ours.

No weights are downloaded.
"""

import pytest
import torch
from torch import nn

from tests.heads.from_transformers import relative_error
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.load import load_config
from vitdense.convert.architecture import match_vit
from vitdense.convert.families import COCO_ROWS, RF_DETR, load_published
from vitdense.convert.import_weights import import_weights
from vitdense.inference.predictor import load
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.types import Features, Target

lwdetr = pytest.importorskip('rfdetr.models.lwdetr')
tensors = pytest.importorskip('rfdetr.utilities.tensors')
configs = pytest.importorskip('rfdetr.config')

CONFIG = 'configs/detection/rf_detr_dinov2_s_coco_384.py'
SIDE = 384
BOUND = 2e-6


def randomise(module: nn.Module) -> None:
    """Draw weights of the scale of trained ones: boxes stay in or near the image."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(('norm.weight', 'bn.weight')) or 'norm' in name.split('.')[-2]:
                parameter.uniform_(0.5, 1.5) if name.endswith('weight') else parameter.normal_(std=0.1)
            elif 'sampling_offsets.bias' in name:
                parameter.normal_(std=2.0)
            else:
                parameter.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)


@pytest.fixture
def pair() -> tuple[nn.Module, DenseModel]:
    """Their nano model with all 91 category ids, and our config with the same weights."""
    theirs = lwdetr.build_model_from_config(configs.RFDETRNanoConfig(pretrain_weights=None, device='cpu'))
    randomise(theirs)
    state = theirs.state_dict()
    recipe = match_vit(without_pretrained(load_config(CONFIG).model), state, RF_DETR)
    ours = build(recipe, classes={'labels': [str(number) for number in range(COCO_ROWS)]})
    coverage = load_published(ours.network, state, RF_DETR, where='rfdetr')
    assert coverage.complete and coverage.matched == coverage.total
    return theirs, ours


def output(theirs: nn.Module, imgs: torch.Tensor) -> dict:
    return theirs(tensors.NestedTensor(imgs, torch.zeros(len(imgs), *imgs.shape[-2:], dtype=torch.bool)))


@torch.no_grad()
def test_the_head_of_the_nano_model_equals_the_authors_package(pair):
    theirs, ours = pair
    theirs.eval(), ours.eval()
    recorded = []
    theirs.backbone[0].projector.register_forward_hook(lambda module, options, maps: recorded.extend(maps))
    wanted = output(theirs, torch.randn(1, 3, SIDE, SIDE))
    got = ours.network.heads['det'](Features(maps=tuple(recorded), input_size=(SIDE, SIDE)))
    assert got.class_logits.shape == (1, 300, COCO_ROWS)
    assert relative_error(got.class_logits, wanted['pred_logits']) < BOUND
    assert relative_error(got.boxes, wanted['pred_boxes']) < BOUND


def test_the_nano_model_with_its_losses_and_gradients_equals_the_authors_package(pair):
    """In float64: in float32 other sums in the projector can select other queries."""
    theirs, ours = (model.double().train() for model in pair)
    imgs, labels = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64), torch.tensor([1, 90, 44])
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.6, 0.5, 0.2], [0.5, 0.2, 0.1, 0.1]])
    predictions = output(theirs, imgs)
    train = configs.TrainConfig(dataset_dir='.', output_dir='.')
    criterion, _ = lwdetr.build_criterion_from_config(configs.RFDETRNanoConfig(device='cpu'), train)
    parts = criterion.train()(predictions, [{'labels': labels, 'boxes': boxes.double()}])
    wanted = sum(parts[name] * weight for name, weight in criterion.weight_dict.items())

    outputs = ours.network(imgs)['det']
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1) * SIDE
    losses = ours.tasks['det'].loss(outputs, [Target(boxes=corners, labels=labels)])
    assert relative_error(outputs.class_logits, predictions['pred_logits']) < BOUND
    assert relative_error(outputs.boxes, predictions['pred_boxes']) < BOUND
    assert sum(losses.values()).item() == pytest.approx(wanted.item(), rel=1e-5)

    wanted.backward(), sum(losses.values()).backward()
    for parameter in theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = {name: parameter.grad.clone() for name, parameter in ours.network.named_parameters()}
    load_published(ours.network, theirs.state_dict(), RF_DETR, where='gradients')
    for name, parameter in ours.network.named_parameters():
        # single entries differ where a sampling point lies on a cell's border, to the left of it or to the right
        assert (gradients[name] - parameter).norm() < 1e-4 * parameter.norm(), name


@torch.no_grad()
def test_a_checkpoint_of_three_classes_becomes_a_model_folder_that_predicts_as_the_authors_package(tmp_path):
    config = configs.RFDETRNanoConfig(pretrain_weights=None, device='cpu', num_classes=3, resolution=320)
    theirs = lwdetr.build_model_from_config(config).eval()
    randomise(theirs)
    for name, parameter in theirs.named_parameters():
        if 'class_embed' in name:  # the last row is no class: its logits are low after training
            parameter[-1] = -30.0 if name.endswith('bias') else 0.0
    content = {'model': theirs.state_dict(), 'args': {'class_names': ['a', 'b', 'c']}}
    torch.save(content | {'model_config': config.model_dump(), 'model_name': 'RFDETRNano'}, tmp_path / 'best.pth')
    import_weights('rf-detr', [tmp_path / 'best.pth'], None, tmp_path / 'model')
    ours = load(tmp_path / 'model', device='cpu', amp='off')
    assert ours.metainfo['classes'] == {'labels': ['a', 'b', 'c']} and ours.transforms.transforms[0].size == (320, 320)
    imgs = torch.randn(1, 3, 320, 320)
    wanted, got = output(theirs, imgs), ours.model.network(imgs)['det']
    assert relative_error(got.class_logits, wanted['pred_logits'][..., :3]) < BOUND
    assert relative_error(got.boxes, wanted['pred_boxes']) < BOUND
