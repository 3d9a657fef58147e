"""Configs that name a published recipe have its numbers; each is that of the authors' own code, which is named."""

from pathlib import Path

import pytest
import torch

from vitdense.config.load import load_config
from vitdense.registry import build

ROOT = Path(__file__).resolve().parents[2] / 'configs'


def config(config_name: str):
    return load_config(ROOT / f'{config_name}.py')


def kinds(transforms: dict[str, dict]) -> list[str]:
    return [transform['type'].rsplit('.')[-1] for transform in transforms.values()]


def rates(config_name: str, num_classes: int = 80) -> dict[str, tuple[float, float]]:
    """Return the learning rate and the weight decay of every trained parameter."""
    cfg = config(config_name)
    recipe = cfg['model']
    backbone = recipe['network']['backbone']
    backbone.get('vit', backbone)['pretrained'] = False
    names = {task: [str(number) for number in range(num_classes)] for task in ('labels', 'semantic')}
    with torch.device('meta'):
        model = build(recipe, classes=names)
    optimizer = cfg['optim_wrapper']['optimizer']
    return {
        name: (optimizer['lr'] * group.lr, optimizer['weight_decay'] if group.decayed else 0.0)
        for group in build(cfg['optim_wrapper']['groups']).groups(model)
        for name in group.names
    }


@pytest.mark.parametrize(
    ('config_name', 'steps', 'milestone', 'warmup'),
    [
        ('dino_mae_b_coco_12ep', 90_000, 82_500, 0),
        ('dino_mae_b_coco_50ep', 375_000, 300_000, 0),
        ('dino_mae_l_coco_12ep', 90_000, 72_000, 250),
        ('dino_mae_l_coco_50ep', 375_000, 300_000, 250),
    ],
)
def test_dino_on_mae_is_that_of_detrex(config_name, steps, milestone, warmup):
    """projects/dino/configs/models/dino_vitdet.py and dino_r50.py, dino-vitdet/*.py, projects/dino/modeling/dino.py."""
    cfg = config(f'detection/{config_name}')
    assert cfg.schedule.max_iters == steps and tuple(cfg.schedule.milestones) == (milestone,)
    assert cfg.schedule.warmup_iters == warmup and cfg.train_dataloader.batch_size == 16
    assert cfg.model.tasks.det.top_k == 300
    assert 'Pad' not in kinds(cfg.train_dataloader.dataset.transforms)  # no square padding
    recipe = cfg['model']
    recipe['network']['backbone']['pretrained'] = False
    with torch.device('meta'):
        network = build(recipe, classes={'labels': [str(number) for number in range(80)]}).network
    head = network.heads['det']
    assert tuple(network.adapters['det'].strides) == tuple(head.project.strides) == (8, 16, 32, 64)
    assert len(head.decoder.class_predictors) == len(head.decoder.box_predictors) == 6
    assert network.backbone.num_prefix_tokens == 0
    actual = rates(f'detection/{config_name}')
    assert actual['network.adapters.det.smooth.2.0.weight'] == pytest.approx((1e-5, 1e-4))
    assert actual['network.adapters.det.smooth.2.1.weight'] == pytest.approx((1e-5, 0.0))  # weight_decay_norm=0
    assert actual['network.backbone.model.blocks.3.mlp.fc1.weight'] == pytest.approx((1e-5, 1e-4))
    assert actual['network.heads.det.decoder.box_predictors.5.linears.2.bias'] == pytest.approx((1e-4, 1e-4))


def test_fine_tuned_linear_is_that_of_benchmark_vfm_ss():
    """datasets/transforms.py, configs/ade20k_linear_semantic.yaml."""
    cfg = config('semantic/linear_finetuned_dinov2_b_ade20k')
    steps = cfg.train_dataloader.dataset.transforms
    assert kinds(steps) == ['ColorJitter', 'RandomFlip', 'LargeScaleJitter']
    assert steps.color['hue'] == 18 / 360 and steps.color['brightness'] == 32 / 255
    assert steps.jitter['size'] == 512 and tuple(steps.jitter['ratio']) == (0.5, 2.0)
    assert steps.jitter['require_labels'] and steps.jitter['fill'] == 0
    assert cfg.schedule.max_iters == 40_000 and cfg.model.tasks.sem.get('losses') is None


def test_dinov3_linear_turns_hue_by_half_the_circle():
    """dinov3/eval/segmentation/transforms.py: hue_range=(-0.5, 0.5), images of PIL, PadTensor behind NormalizeImage."""
    for size in 'sbl':
        cfg = config(f'semantic/linear_dinov3_{size}_ade20k')
        steps = cfg.train_dataloader.dataset.transforms
        assert steps.color['hue'] == 90 and steps.pad['after_normalisation']
        assert steps.resize['antialias'] and cfg.val_dataloader.dataset.transforms.resize['antialias']
        assert cfg.model.tasks.sem.losses[0]['average'] == 'all'


MMSEG = [
    *(f'linear_dinov2_{size}_ade20k' for size in 'sbl'),
    'linear_layers4_dinov2_s_ade20k',
    'upernet_mae_b_ade20k',
    'dpt_vit_b_ade20k',
    *(f'upernet_vitadapter_{name}_ade20k' for name in ('deit_t', 'deit_s', 'deit_b', 'augreg_b', 'augreg_l')),
]


@pytest.mark.parametrize('config_name', MMSEG)
def test_ade20k_is_prepared_as_mmsegmentation_does(config_name):
    """configs/_base_/datasets/ade20k.py, mmseg/models/losses/cross_entropy_loss.py: avg_non_ignore=False."""
    cfg = config(f'semantic/{config_name}')
    train, val = cfg.train_dataloader.dataset.transforms, cfg.val_dataloader.dataset.transforms.resize
    assert kinds(train) == ['RandomResize', 'RandomCrop', 'RandomFlip', 'PhotometricDistortion', 'Pad']
    assert not train.resize['antialias'] and not val['antialias']
    assert train.crop['fill'] is None and train.pad['after_normalisation']
    assert train.pad['size'] == train.crop['size'][0]
    assert [loss['average'] for loss in cfg.model.tasks.sem.losses] == ['all']
    if 'vitadapter' in config_name:
        assert val['divisor'] == 32 and val['round_up']
        assert cfg.schedule.max_iters == 160_000 and cfg.schedule.warmup_iters == 1500


@pytest.mark.parametrize(('version', 'size'), [('dinov2', 640), ('dinov2', 1280), ('dinov3', 640), ('dinov3', 1280)])
def test_eomt_evaluates_on_a_padded_square(version, size):
    cfg = config(f'detection/eomt_{version}_l_coco_{size}')
    steps = cfg.val_dataloader.dataset.transforms
    resize, pad = steps.values()
    assert (resize['size'], resize['max_size'], pad['size'], pad.get('fill', 0)) == (size, size, size, 0)
    assert kinds(steps) == ['ResizeShortSide', 'Pad'] and cfg.model.network.backbone.img_size == size


def test_eomt_on_dinov3_learns_as_the_released_code_runs():
    """training/lightning_module.py: `elif ... lr_mult` is never reached; transformers' DINOv3ViT: rescale 2.0."""
    actual = rates('semantic/eomt_dinov3_l_ade20k', 150)
    assert {lr for lr, _ in actual.values()} == {2e-4} and {decay for _, decay in actual.values()} == {0.05}
    for config_name in ('semantic/eomt_dinov3_l_ade20k', 'detection/eomt_dinov3_l_coco_640'):
        backbone = config(config_name)['model']['network']['backbone']
        with torch.device('meta'):
            vit = build({**backbone, 'pretrained': False})
        assert vit.model.rope.rescale_coords == 2.0 and 'blocks.0.attn.q_bias' in dict(vit.model.named_parameters())
    for size in 'sb':
        hook = config(f'semantic/eomt_dinov3_{size}_ade20k').custom_hooks[0]
        assert hook['begin'] == (1 / 6, 5 / 12, 2 / 3) and hook['end'] == (1 / 3, 7 / 12, 5 / 6)


def test_rates_and_decays_of_rf_detr():
    """rfdetr/util/get_param_dicts.py, rfdetr/models/backbone/backbone.py."""
    for config_name, layers in (('384', 13), ('560', 12)):  # the last layer that is read, plus one
        actual = rates(f'detection/rf_detr_dinov2_s_coco_{config_name}')
        backbone, head = 'network.backbone.model.', 'network.heads.det.'
        for name, layer, decay in (
            ('blocks.3.attn.qkv.weight', 4, 1e-4),
            ('blocks.10.norm1.weight', 11, 0.0),
            ('blocks.3.attn.qkv.bias', 4, 0.0),
            ('blocks.3.ls1.gamma', 4, 1e-4),
            ('patch_embed.proj.weight', 0, 0.0),
            ('pos_embed', 0, 0.0),
            ('cls_token', 0, 0.0),
        ):
            wanted = 1.5e-4 * 0.8 ** (layers + 1 - layer) * 0.7**2
            assert actual[backbone + name] == pytest.approx((wanted, decay)), name
        for name in ('layers.0.cross_attn.value_proj.bias', 'norm.weight', 'position_encoder.linears.0.weight'):
            assert actual[f'{head}decoder.{name}'] == pytest.approx((0.7e-4, 1e-4)), name
        for name in ('decoder.class_predictors.0.bias', 'queries.content', 'queries.box_predictors.3.linears.0.weight'):
            assert actual[head + name] == pytest.approx((1e-4, 1e-4)), name


@pytest.mark.parametrize(
    ('size', 'depth', 'decay', 'component', 'weight_decay', 'top_k', 'batch'),
    [
        ('tiny', 6, 0.8, 0.7, 1e-4, 100, 32),
        ('small', 10, 0.8, 0.7, 1e-4, 300, 32),
        ('medium', 10, 0.7, 0.7, 1e-4, 300, 16),
        ('large', 10, 0.7, 0.5, 1e-4, 300, 16),
        ('xlarge', 10, 0.75, 0.5, 1e-3, 300, 16),
    ],
)
def test_rates_and_decays_of_lw_detr(size, depth, decay, component, weight_decay, top_k, batch):
    """scripts/lwdetr_*_coco_train.sh (eight GPUs), models/backbone/backbone.py, util/get_param_dicts.py."""
    config_name = f'detection/lw_detr_{size}_coco'
    cfg = config(config_name)
    assert cfg.model.tasks.det.top_k == top_k and cfg.ema.buffers
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == batch
    actual = rates(config_name)
    for name, layer, decays in (
        ('blocks.3.attn.qkv.weight', 4, True),
        ('blocks.3.attn.qkv.bias', 4, False),
        ('blocks.3.ls2.gamma', 4, False),
        ('blocks.3.norm2.weight', 4, False),
        ('patch_embed.proj.weight', 0, True),
        ('pos_embed', 0, False),
    ):
        wanted = (1.5e-4 * decay ** (depth + 1 - layer) * component**2, weight_decay if decays else 0.0)
        assert actual[f'network.backbone.model.{name}'] == pytest.approx(wanted), name
    head = 'network.heads.det.'
    assert actual[f'{head}decoder.norm.bias'] == pytest.approx((1e-4 * component, weight_decay))
    assert actual['network.adapters.det.stages.0.norm.weight'] == pytest.approx((1e-4, weight_decay))


@pytest.mark.parametrize('config_name', sorted((ROOT / 'detection').glob('*_coco*.py')), ids=lambda path: path.stem)
def test_as_many_detections_are_read_as_by_each_family(config_name):
    task = load_config(config_name).model.tasks.det
    few = config_name.stem.startswith(('eomt', 'detr_', 'lw_detr_tiny'))
    assert task.get('top_k', 100) == (100 if few else 300)
