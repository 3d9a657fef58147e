"""Published weights: their names and shapes load completely, and the outputs are those of their source."""

import json
import re

import pytest
import torch
from torch import Tensor, nn

from tests.convert.test_families import CLASSES, layer, norm, published_heads
from tests.heads.from_transformers import randomise, relative_error
from tools.import_weights import main
from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.projector import Projector
from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.load import load_config
from vitdense.convert.architecture import match_vit
from vitdense.convert.families import (
    COCO_IDS,
    DINOV2_LINEAR,
    EOMT,
    EOMT_DINOV3,
    LW_DETR,
    RF_DETR,
    load_published,
    translate,
)
from vitdense.convert.import_weights import import_weights
from vitdense.errors import CheckpointError, ConfigError
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import load
from vitdense.networks.eomt import EoMT
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.storage.weights import save_weights


def sampled(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    return {
        name: torch.tensor(7) if name.endswith('tracked') else torch.rand(shape).add(0.1)
        for name, shape in shapes.items()
    }


def dinov2(width: int, depth: int, *, patch: int = 14, side: int = 37) -> dict[str, tuple]:
    """The file of a backbone, as facebookresearch/dinov2 names it."""
    shapes = {'cls_token': (1, 1, width), 'pos_embed': (1, 1 + side**2, width), 'mask_token': (1, width)}
    shapes |= layer('patch_embed.proj', width, 3, patch, patch) | norm('norm', width)
    for number in range(depth):
        name = f'blocks.{number}'
        shapes |= norm(f'{name}.norm1', width) | norm(f'{name}.norm2', width)
        shapes |= layer(f'{name}.attn.qkv', 3 * width, width) | layer(f'{name}.attn.proj', width, width)
        shapes |= layer(f'{name}.mlp.fc1', 4 * width, width) | layer(f'{name}.mlp.fc2', width, 4 * width)
        shapes |= {f'{name}.ls1.gamma': (width,), f'{name}.ls2.gamma': (width,)}
    return shapes


def linear_head(width: int) -> dict[str, tuple]:
    return layer('decode_head.conv_seg', CLASSES, width, 1, 1) | norm('decode_head.bn', width, running=True)


@pytest.mark.parametrize('layers', [(11,), (8, 9, 10, 11)])
def test_dinov2_with_a_linear_head(layers):
    vit = ViT('vit_small_patch14_dinov2')
    branch = dict(adapter=dict(type=PlainMaps, layers=layers), head=dict(type=LinearHead))
    network = SharedNetwork(vit, {'sem': branch}, num_classes={'sem': CLASSES})
    state = sampled(dinov2(384, 12) | linear_head(384 * len(layers)))
    coverage = load_published(network, state, DINOV2_LINEAR, where='dinov2')
    assert coverage.complete and coverage.matched == coverage.total
    ours = network.state_dict()
    assert torch.equal(ours['heads.sem.norm.running_var'], state['decode_head.bn.running_var'])
    assert torch.equal(ours['backbone.model.blocks.7.ls2.gamma'], state['blocks.7.ls2.gamma'])
    with pytest.raises(CheckpointError, match='%') as caught:
        load_published(network, linear := sampled(linear_head(384 * len(layers))), DINOV2_LINEAR, where='head alone')
    assert 'backbone.model' in caught.value.why and linear


def mae_upernet(width: int, depth: int, side: int) -> dict[str, tuple]:
    """mmsegmentation's MAE of 512 pixels with its neck; the heads are those of UPerNet with 512 channels."""
    shapes = {'backbone.cls_token': (1, 1, width), 'backbone.pos_embed': (1, 1 + side**2, width)}
    shapes |= layer('backbone.patch_embed.projection', width, 3, 16, 16)
    for number in range(depth):
        name = f'backbone.layers.{number}'
        shapes |= norm(f'{name}.ln1', width) | norm(f'{name}.ln2', width)
        shapes |= {
            f'{name}.gamma_1': (width,),
            f'{name}.gamma_2': (width,),
            f'{name}.attn.qkv.weight': (3 * width, width),
        }
        shapes |= {f'{name}.attn.q_bias': (width,), f'{name}.attn.v_bias': (width,)}
        shapes |= {f'{name}.attn.relative_position_bias_table': ((2 * side - 1) ** 2 + 3, 3)}
        shapes |= {f'{name}.attn.relative_position_index': (side**2 + 1, side**2 + 1)}
        shapes |= layer(f'{name}.attn.proj', width, width)
        shapes |= layer(f'{name}.ffn.layers.0.0', 4 * width, width) | layer(f'{name}.ffn.layers.1', width, 4 * width)
    shapes |= layer('neck.upsample_4x.0', width, width, 2, 2) | norm('neck.upsample_4x.1', width, running=True)
    shapes |= layer('neck.upsample_4x.3', width, width, 2, 2) | layer('neck.upsample_2x.0', width, width, 2, 2)
    return shapes | published_heads(width)


def test_mae_with_upernet_loads_with_its_relative_bias(tmp_path):
    state = sampled(mae_upernet(192, 12, 8))
    assert state['backbone.layers.3.attn.relative_position_bias_table'].shape == (15**2 + 3, 3)
    save_weights(tmp_path / 'mae.safetensors', state)
    cfg = load_config(
        'configs/semantic/upernet_mae_b_ade20k.py',
        ['model.network.backbone.name=vit_tiny_patch16_224', 'model.network.branches.sem.head.channels=512'],
    )
    coverage = import_weights(
        'mae-upernet', [tmp_path / 'mae.safetensors'], cfg, tmp_path / 'model', num_classes=CLASSES, accept_licence=True
    )
    assert coverage.complete and coverage.matched == coverage.total
    network = load(tmp_path / 'model', device='cpu', amp='off').model.network.state_dict()
    assert network['backbone.model.pos_embed'].shape == (1, 65, 192) and 'backbone.model.norm.weight' not in network
    bias = network['backbone.model.blocks.2.attn.qkv.bias'].chunk(3)
    assert torch.equal(bias[0], state['backbone.layers.2.attn.q_bias']) and not bias[1].any()
    for theirs, ours in (('attn.relative_position_bias_table', 'relative_bias.table'), ('gamma_2', 'ls2.gamma')):
        assert torch.equal(network[f'backbone.model.blocks.3.{ours}'], state[f'backbone.layers.3.{theirs}'])
    cfg.model.network.backbone.relative_bias = False
    with pytest.raises(CheckpointError) as caught:
        import_weights(
            'mae-upernet',
            [tmp_path / 'mae.safetensors'],
            cfg,
            tmp_path / 'no',
            num_classes=CLASSES,
            accept_licence=True,
        )
    assert 'relative_bias.table' in str(caught.value)


CONTEXT = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, num_blocks=2, num_queries=6, num_labels=5)
CONTEXT |= dict(patch_size=16, num_upscale_blocks=2, train_num_points=64, attn_implementation='eager')


@pytest.mark.parametrize('kind', ['dinov2', 'dinov3'])
@pytest.mark.parametrize('authors', [False, True])
def test_eomt_predicts_as_transformers(kind, authors):
    transformers = pytest.importorskip('transformers')
    context = dict(embed_dim=48, depth=4, num_heads=3)
    if kind == 'dinov2':
        theirs = transformers.EomtForUniversalSegmentation(
            transformers.EomtConfig(**CONTEXT, image_size=64, mlp_ratio=4)
        )
        vit, family = ViT('vit_small_patch14_reg4_dinov2', patch_size=16, img_size=64, timm_args=context), EOMT
    else:
        config = transformers.EomtDinov3Config(**CONTEXT, image_size=64, intermediate_size=192, layer_norm_eps=1e-5)
        theirs = transformers.EomtDinov3ForUniversalSegmentation(config)
        vit, family = ViT('vit_small_patch16_dinov3_qkvb', img_size=64, timm_args=context), EOMT_DINOV3
    randomise(theirs)
    ours = EoMT(vit, num_queries=6, num_blocks=2, num_classes={'sem': 5})
    state = theirs.state_dict()
    if authors:  # the authors' names are ours, behind `network.` and `network.encoder.`
        load_published(ours, state, family, where='eomt')
        prefix = 'network.encoder.backbone.'
        state = {
            prefix + name.removeprefix('backbone.model.')
            if name.startswith('backbone.')
            else f'network.{name}': value.clone()
            for name, value in ours.state_dict().items()
        }
        state |= {'network.encoder.pixel_mean': torch.rand(1, 3, 1, 1), 'criterion.empty_weight': torch.rand(6)}
        for parameter in ours.parameters():
            nn.init.zeros_(parameter)
    coverage = load_published(ours, state, family, where='eomt')
    assert coverage.complete and coverage.matched == coverage.total
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, got = theirs.eval()(imgs), ours.eval()(imgs)['sem']
    assert relative_error(got.class_logits, wanted.class_queries_logits) < 1e-4
    assert relative_error(got.mask_logits, wanted.masks_queries_logits) < 1e-4


SIZES = dict(d_model=32, decoder_layers=2, decoder_self_attention_heads=4, decoder_cross_attention_heads=8)
SIZES |= dict(decoder_n_points=2, num_queries=6, group_detr=3, decoder_ffn_dim=24, dropout=0.0, c2f_num_blocks=2)
HEAD = dict(type=DeformableDetrHead, channels=32, norm='none', num_encoder_layers=0, num_decoder_layers=2, num_heads=4)
HEAD |= dict(cross_heads=8, num_points=2, ffn_dim=24, dropout=0.0, num_queries=6, groups=3)
HEAD |= dict(selection=dict(type=QuerySelection, content='learned', class_agnostic=False, learned_box_deltas=True))
HEAD |= dict(decoding=dict(type=BoxDecoding, anchors=True, refine=False, relative=True, final_norm=True))


def rf_pair(num_labels: int, num_classes: int, *, split: int = 1) -> tuple[nn.Module, SharedNetwork]:
    modeling = pytest.importorskip('transformers.models.rf_detr.modeling_rf_detr')
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrConfig, RfDetrDinov2Config

    context = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, patch_size=16, image_size=64)
    backbone = RfDetrDinov2Config(**context, out_indices=[1, 3], num_windows=split)  # of 0, 1, 2 block 1 is global
    theirs = modeling.RfDetrForObjectDetection(RfDetrConfig(backbone_config=backbone, num_labels=num_labels, **SIZES))
    vit = ViT(
        'vit_small_patch14_dinov2',
        patch_size=16,
        img_size=64,
        windows=WindowPartition(split=split, global_blocks=(1,), prefix='each') if split > 1 else None,
        timm_args=dict(embed_dim=24, depth=3, num_heads=3),
    )
    adapter = dict(type=Projector, layers=(0, 2), channels=32, num_blocks=2)
    branch = dict(adapter=adapter, head=dict(HEAD, num_levels=1))
    return theirs, SharedNetwork(vit, {'det': branch}, num_classes={'det': num_classes})


def lw_pair(width: int, *, split: int) -> tuple[nn.Module, SharedNetwork]:
    modeling = pytest.importorskip('transformers.models.lw_detr.modeling_lw_detr')
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrConfig, LwDetrViTConfig

    context = dict(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, image_size=64, pretrain_image_size=224
    )
    windowed = [0] if split > 1 else []
    backbone = LwDetrViTConfig(**context, out_indices=[1, 2], num_windows=split**2, window_block_indices=windowed)
    config = LwDetrConfig(backbone_config=backbone, projector_scale_factors=[2.0, 0.5], num_labels=5, **SIZES)
    theirs = modeling.LwDetrForObjectDetection(config)
    arguments = dict(embed_dim=width, depth=2, num_heads=2, class_token=False, final_norm=False, init_values=0.1)
    windows = WindowPartition(split=split, global_blocks=(1,)) if split > 1 else None
    vit = ViT('vit_tiny_patch16_224', img_size=64, windows=windows, timm_args=arguments)
    adapter = dict(
        type=Projector, layers=(0, 1), channels=32, num_blocks=2, scales=(2.0, 0.5), norm='batch', normed=False
    )
    branch = dict(adapter=adapter, head=dict(HEAD, num_levels=2))
    return theirs, SharedNetwork(vit, {'det': branch}, num_classes={'det': 5})


def names_of_authors(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Names of RF-DETR's and LW-DETR's own code, from those of transformers."""
    rules = [
        (r'^model\.', ''),
        (r'^decoder\.', 'transformer.decoder.'),
        (r'^enc_out', 'transformer.enc_out'),
        (r'\.self_attn_layer_norm\.', '.norm1.'),
        (r'\.cross_attn_layer_norm\.', '.norm2.'),
        (r'(decoder\.layers\.\d+)\.layer_norm\.', r'\1.norm3.'),
        (r'(decoder\.layers\.\d+)\.mlp\.fc', r'\1.linear'),
        (r'decoder\.layernorm\.', 'decoder.norm.'),
        (r'self_attn\.o_proj', 'self_attn.out_proj'),
        (r'^reference_point_embed', 'refpoint_embed'),
        (r'^backbone\.projector\.(?!scale_layers)', 'backbone.projector.scale_layers.0.'),
        (r'projector\.scale_layers\.(\d+)\.sampling_layers\.(\d+)\.layers\.', r'0.projector.stages_sampling.\1.\2.'),
        (r'projector\.scale_layers\.(\d+)\.layer_norm\.', r'0.projector.stages.\1.1.'),
        (r'projector\.scale_layers\.(\d+)\.projector_layer\.', r'0.projector.stages.\1.0.'),
        (r'(0\.projector\..*)bottlenecks\.', r'\1m.'),
        (r'(0\.projector\.stages\..*)conv(\d)\.', r'\1cv\2.'),
        (r'(0\.projector\..*)\.norm\.', r'\1.bn.'),
    ]
    if kind == 'rf':
        rules += [(r'^backbone\.backbone\.', 'backbone.0.encoder.encoder.')]
        rules += [(r'attention\.o_proj', 'attention.output.dense')]
        rules += [(rf'attention\.{part[0]}_proj', f'attention.attention.{part}') for part in ('query', 'key', 'value')]
    else:
        rules += [
            (r'^backbone\.backbone\.embeddings\.position_embeddings', 'backbone.0.encoder.pos_embed'),
            (r'^backbone\.backbone\.embeddings\.projection', 'backbone.0.encoder.patch_embed.proj'),
            (r'^backbone\.backbone\.encoder\.layer\.', 'backbone.0.encoder.blocks.'),
            (r'\.attention\.o_proj', '.attn.proj'),
            (r'\.attention\.', '.attn.'),
            (r'\.intermediate\.', '.mlp.'),
            (r'\.layernorm_before\.', '.norm1.'),
            (r'\.layernorm_after\.', '.norm2.'),
        ]
    ours = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    for name in [name for name in ours if name.endswith(('self_attn.q_proj.weight', 'encoder_.q_proj.weight'))]:
        location = name.removesuffix('q_proj.weight')
        for kind_of in ('weight', 'bias'):
            parts = [ours.pop(f'{location}{part}_proj.{kind_of}') for part in 'qkv']
            ours[f'{location}in_proj_{kind_of}'] = torch.cat(parts)
    for name in [name for name in ours if name.endswith('attn.q_proj.weight') and 'encoder.blocks' in name]:
        location = name.removesuffix('q_proj.weight')
        ours[f'{location}qkv.weight'] = torch.cat([ours.pop(f'{location}{part}_proj.weight') for part in 'qkv'])
        ours |= {f'{location}{part}_bias': ours.pop(f'{location}{part}_proj.bias') for part in 'qv'}
    return ours


@pytest.mark.parametrize(('split', 'authors'), [(1, False), (1, True), (2, False)])
def test_rf_detr_predicts_as_transformers(split, authors):
    theirs, ours = rf_pair(5, 5, split=split)
    randomise(theirs)
    state = names_of_authors(theirs.state_dict(), 'rf') if authors else theirs.state_dict()
    if authors:
        assert 'backbone.0.encoder.encoder.encoder.layer.1.attention.attention.key.bias' in state
        assert {'backbone.0.projector.stages.0.0.m.1.cv2.bn.bias', 'transformer.decoder.norm.weight'} <= state.keys()
    coverage = load_published(ours, state, RF_DETR, where='rf-detr')
    assert coverage.complete and coverage.matched == coverage.total
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, got = theirs.eval()(imgs), ours.eval()(imgs)['det']
    assert relative_error(got.class_logits, wanted.logits) < 1e-4
    assert relative_error(got.boxes, wanted.pred_boxes) < 1e-4


def test_classifiers_of_91_category_ids_give_the_80_categories():
    theirs, ours = rf_pair(91, 80)
    load_published(ours, theirs.state_dict(), RF_DETR, where='rf-detr')
    state = ours.state_dict()
    assert len(COCO_IDS) == 80 and COCO_IDS[-1] == 90
    for name, location in (
        ('class_embed.weight', 'decoder.class_predictors.0.weight'),
        ('model.enc_out_class_embed.2.bias', 'queries.class_predictors.2.bias'),
    ):
        assert torch.equal(state[f'heads.det.{location}'], theirs.state_dict()[name][list(COCO_IDS)])


@pytest.mark.parametrize('authors', [False, True])
@pytest.mark.parametrize(('width', 'split'), [(24, 1), (24, 2), (520, 1)])
def test_lw_detr_predicts_as_transformers(width, split, authors):
    theirs, ours = lw_pair(width, split=split)
    randomise(theirs)
    state = names_of_authors(theirs.state_dict(), 'lw') if authors else theirs.state_dict()
    if authors:
        assert {'backbone.0.encoder.blocks.1.attn.qkv.weight', 'backbone.0.encoder.pos_embed'} <= state.keys()
    coverage = load_published(ours, state, LW_DETR, where='lw-detr')
    assert coverage.complete and coverage.matched == coverage.total
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, got = theirs.eval()(imgs), ours.eval()(imgs)['det']
    assert relative_error(got.class_logits, wanted.logits) < 1e-4
    assert relative_error(got.boxes, wanted.pred_boxes) < 1e-4


RF_SIZES = {  # the images of our config -> windows, outputs, patch, decoder layers (public facts of rf-detr)
    's_coco_384': (2, [3, 6, 9, 12], 16, 2),
    's_coco_512': (2, [3, 6, 9, 12], 16, 3),
    's_coco_576': (2, [3, 6, 9, 12], 16, 4),
    's_coco_704': (2, [3, 6, 9, 12], 16, 4),
    's_coco_560': (4, [2, 5, 8, 11], 14, 3),
}
LW_SIZES = {  # width, depth, outputs, blocks within windows (public facts of LW-DETR)
    'tiny': (192, 6, [2, 4, 6], [0, 2, 4]),
    'small': (192, 10, [3, 5, 6, 10], [0, 1, 3, 6, 7, 9]),
    'medium': (384, 10, [3, 5, 6, 10], [0, 1, 3, 6, 7, 9]),
    'large': (384, 10, [3, 5, 6, 10], [0, 1, 3, 6, 7, 9]),
    'xlarge': (768, 10, [3, 5, 6, 10], [0, 1, 3, 6, 7, 9]),
}
WIDE = dict(d_model=384, decoder_self_attention_heads=12, decoder_cross_attention_heads=24, decoder_n_points=4)
WIDE |= dict(projector_scale_factors=[2.0, 0.5])


def rf_sized(size: str) -> tuple[type, dict]:
    modeling = pytest.importorskip('transformers.models.rf_detr.modeling_rf_detr')
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrConfig, RfDetrDinov2Config

    windows, outputs, patch, layers = RF_SIZES[size]
    side = 518 if patch == 14 else int(size.rpartition('_')[2])
    context = dict(hidden_size=384, num_attention_heads=6, patch_size=patch, image_size=side)
    backbone = RfDetrDinov2Config(**context, out_indices=outputs, num_windows=windows)
    config = RfDetrConfig(backbone_config=backbone, num_labels=91, decoder_layers=layers, decoder_n_points=2)
    return modeling.RfDetrForObjectDetection, config


def lw_sized(size: str) -> tuple[type, dict]:
    modeling = pytest.importorskip('transformers.models.lw_detr.modeling_lw_detr')
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrConfig, LwDetrViTConfig

    width, depth, outputs, windowed = LW_SIZES[size]
    context = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=12, image_size=640)
    backbone = LwDetrViTConfig(**context, out_indices=outputs, window_block_indices=windowed)
    more = WIDE if size.endswith('large') else dict(decoder_n_points=2, projector_scale_factors=[1.0])
    queries = 100 if size == 'tiny' else 300
    return modeling.LwDetrForObjectDetection, LwDetrConfig(
        backbone_config=backbone, num_labels=91, num_queries=queries, **more
    )


@pytest.mark.parametrize(
    ('family', 'size'), [*(('rf', size) for size in RF_SIZES), *(('lw', size) for size in LW_SIZES)]
)
def test_configs_have_the_tensors_of_the_published_sizes(family, size):
    kind, config = (rf_sized if family == 'rf' else lw_sized)(size)
    if family == 'rf':
        config_name, published = f'rf_detr_dinov2_{size}', RF_DETR
    else:
        config_name, published = f'lw_detr_{size}_coco', LW_DETR
    cfg = load_config(f'configs/detection/{config_name}.py')
    with torch.device('meta'):
        state = kind(config).state_dict()
        recipe = match_vit(without_pretrained(cfg.model), state, published)
        wanted = build(recipe, classes={'labels': [str(number) for number in range(80)]}).network.state_dict()
        ours = translate(state, published, wanted)
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in wanted.items()}
    vit = recipe['network']['backbone']
    windows = WindowPartition(**{key: value for key, value in vit['windows'].items() if key != 'type'})
    theirs = config.backbone_config
    blocks = theirs.window_block_indexes if family == 'rf' else theirs.window_block_indices
    assert windows.blocks(vit.get('timm_args', {}).get('depth', 12)) == {block for block in blocks if block < 12}
    assert recipe['network']['branches']['det']['adapter']['layers'] == tuple(each - 1 for each in theirs.out_indices)


def test_a_leftover_tensor_of_a_detector_is_an_error_that_names_it():
    theirs, ours = rf_pair(5, 5)
    state = theirs.state_dict() | {'segmentation_head.bias': torch.zeros(3)}
    with pytest.raises(CheckpointError) as caught:
        load_published(ours, state, RF_DETR, where='rf-detr')
    assert 'segmentation_head.bias' in caught.value.why


CONFIG = 'configs/semantic/linear_dinov2_s_ade20k.py'
SMALL = ['+model.network.backbone.timm_args=dict(embed_dim=48, depth=2, num_heads=3)', 'data_root=nowhere']


def test_the_tool_writes_a_model_folder_with_a_card(tmp_path, capsys):
    save_weights(tmp_path / 'backbone.safetensors', sampled(dinov2(48, 2, side=37)))
    save_weights(tmp_path / 'head.safetensors', sampled(linear_head(48)))
    files = [str(tmp_path / 'backbone.safetensors'), str(tmp_path / 'head.safetensors')]
    where = ['--config', CONFIG, '--out', str(tmp_path / 'model'), '--cfg-options', *SMALL]
    main(['dinov2-linear', *files, *where])
    out = capsys.readouterr().out
    assert 'licence: Apache-2.0' in out and 'facebookresearch/dinov2' in out and '100 % of' in out
    info = json.loads((tmp_path / 'model' / 'model.json').read_text())
    assert info['licence'] == 'Apache-2.0' and info['published']['family'] == 'dinov2-linear'
    assert [file['name'] for file in info['published']['files']] == ['backbone.safetensors', 'head.safetensors']
    text = (tmp_path / 'model' / 'README.md').read_text()
    assert 'Apache-2.0' in text and 'rule of timm' in text and info['published']['files'][1]['sha256'] in text
    predictor = load(tmp_path / 'model', device='cpu', amp='off')
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    assert predictor(image)['sem'].labels.shape == (60, 80)
    assert predictor.metainfo['classes']['semantic'][0] == 'wall'
    with pytest.raises(CheckpointError, match='two files have'):
        main(['dinov2-linear', files[0], *files, *where])


def test_licences_with_conditions_must_be_accepted(tmp_path):
    where = ['--config', CONFIG, '--out', str(tmp_path / 'model'), '--cfg-options', *SMALL]
    with pytest.raises(ConfigError, match='licence of these weights has conditions: CC-BY-NC-4.0') as caught:
        main(['mae-upernet', 'file.pth', *where])
    assert '--accept-licence' in caught.value.fix
    with pytest.raises(CheckpointError, match='no weight file'):
        main(['mae-upernet', 'file.pth', '--accept-licence', *where])
    with pytest.raises(ConfigError, match="did you mean 'dinov2-linear'"):
        main(['dinov2-linea', 'file.pth', *where])


def test_a_table_of_published_weights_has_the_grid_of_the_config() -> None:
    state = {'backbone.model.pos_embed': torch.zeros(1, 197, 8), 'backbone.model.cls_token': torch.zeros(1, 1, 8)}
    state |= {'backbone.model.patch_embed.proj.weight': torch.zeros(8, 3, 16, 16)}
    published = RF_DETR._replace(rules=())
    for message, expected in ((None, 224), (512, 224), ((112, 448), (112, 448)), (224, 224)):
        created = match_vit({'network': {'backbone': {'img_size': message}}}, state, published)
        assert created['network']['backbone']['img_size'] == expected
