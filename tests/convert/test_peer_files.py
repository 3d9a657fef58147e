"""Checkpoints that people made with rfdetr and transformers: classes and sizes from the files, outputs of the peer."""

import argparse
import json

import pytest
import torch
from torch import Tensor, nn

from tests.convert.test_import_weights import CONTEXT, lw_pair, names_of_authors, rf_pair, rf_sized
from tests.heads.from_transformers import randomise, relative_error
from tools.import_weights import main
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.load import load_config
from vitdense.convert import architecture
from vitdense.convert.families import FAMILIES, load_published
from vitdense.convert.peer_files import PeerInfo, read_info
from vitdense.errors import CheckpointError, ConfigError
from vitdense.inference.predictor import load
from vitdense.networks.eomt import EoMT
from vitdense.registry import build
from vitdense.storage.weights import read_weights

CONFIG = """
from mmengine.config import read_base

with read_base():
    from vitdense.configs.detection.rf_detr_dinov2_s_coco_384 import *

model.network.backbone.update(
    name='vit_small_patch14_dinov2', img_size=64, timm_args=dict(embed_dim=24, depth=3, num_heads=3))
model.network.backbone.windows.update(global_blocks=(1,))
model.network.branches.det.adapter.update(layers=(0, 2), channels=32, num_blocks=2)
model.network.branches.det.head.update(
    num_decoder_layers=LAYERS, channels=32, num_heads=4, cross_heads=8, num_points=2, ffn_dim=24, num_queries=6,
    groups=3)
data_root = 'nowhere'
"""
NAMES = ['red', 'green', 'blue']
ROWS = 4  # of the classifiers: one more than classes, as rfdetr makes them


@pytest.fixture
def configs(tmp_path, monkeypatch) -> list[str]:
    """Two small configs, of which the second has the architecture of `rf_pair`."""
    paths = [tmp_path / f'layers_{layers}.py' for layers in (3, 2)]
    for path in paths:
        path.write_text(CONFIG.replace('LAYERS', path.stem[-1]))
    monkeypatch.setattr(architecture, 'configs_of', lambda family: [str(path) for path in paths])
    return [str(path) for path in paths]


@pytest.fixture
def trained() -> nn.Module:
    """transformers' RF-DETR with a last row that no object has, whose logits are low after training."""
    theirs, _ = rf_pair(ROWS, 3, split=2)
    randomise(theirs)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if 'class_embed' in name:
                value[-1] = -30.0 if name.endswith('bias') else 0.0
    return theirs.eval()


def rfdetr_checkpoint(state: dict[str, Tensor], args: object, **model_config: object) -> dict[str, object]:
    """What rfdetr 1.11 writes as checkpoint_best_total.pth."""
    state = state | {'_kp_active_mask': torch.zeros(0, 0)}
    content = {'model': state, 'state_dict': {f'model.{name}': value for name, value in state.items()}, 'args': args}
    more = {'epoch': 3, 'callbacks': {}, 'optimizer_states': [], 'model_name': 'RFDETRNano', 'rfdetr_version': '1.11.2'}
    return content | more | ({'model_config': model_config} if model_config else {})


STRUCTURE = dict(patch_size=16, out_feature_indexes=[1, 3], num_windows=2)


@pytest.mark.parametrize('args', [dict(class_names=NAMES), argparse.Namespace(class_names=NAMES, resolution=96)])
def test_a_checkpoint_of_rfdetr_brings_its_classes_and_its_image_size(trained, configs, tmp_path, args):
    state = names_of_authors(trained.state_dict(), 'rf')
    config = STRUCTURE | dict(resolution=96) if isinstance(args, dict) else {}
    torch.save(rfdetr_checkpoint(state, args, **config), tmp_path / 'best.pth')
    main(['rf-detr', str(tmp_path / 'best.pth'), '--out', str(tmp_path / 'model')])
    info = json.loads((tmp_path / 'model' / 'model.json').read_text())
    assert info['classes'] == {'labels': NAMES} and info['category_ids'] == {}
    assert [step['size'] for step in info['transforms']] == [96]
    assert info['recipe']['network']['branches']['det']['head']['num_decoder_layers'] == 2
    network = load(tmp_path / 'model', device='cpu', amp='off').model.network
    imgs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, got = trained(imgs), network(imgs)['det']
    assert got.class_logits.shape == (2, 6, 3)
    assert relative_error(got.class_logits, wanted.logits[..., :3]) < 1e-4
    assert relative_error(got.boxes, wanted.pred_boxes) < 1e-4


def test_a_folder_of_transformers_brings_its_classes_and_its_image_size(trained, configs, tmp_path):
    trained.config.id2label = dict(enumerate([*NAMES, 'N/A']))
    trained.save_pretrained(tmp_path / 'theirs')
    (tmp_path / 'theirs' / 'preprocessor_config.json').write_text('{"size": {"height": 64, "width": 64}}')
    main(['rf-detr', str(tmp_path / 'theirs'), '--out', str(tmp_path / 'model')])
    info = json.loads((tmp_path / 'model' / 'model.json').read_text())
    assert info['classes'] == {'labels': NAMES} and [step['size'] for step in info['transforms']] == [64]
    assert [file['name'] for file in info['published']['files']] == ['model.safetensors']
    with pytest.raises(ConfigError, match='a model of another family') as caught:
        main(['lw-detr', str(tmp_path / 'theirs'), '--out', str(tmp_path / 'model')])
    assert 'write rf-detr' in caught.value.fix


def test_what_no_config_has_and_classes_without_names_are_errors(trained, configs, tmp_path):
    state = names_of_authors(trained.state_dict(), 'rf')
    path, out = str(tmp_path / 'best.pth'), ['--out', str(tmp_path / 'model')]
    torch.save(rfdetr_checkpoint(state, dict(class_names=NAMES), **STRUCTURE | dict(num_windows=4)), path)
    with pytest.raises(CheckpointError, match='none of our configs') as caught:
        main(['rf-detr', path, *out])
    assert '--config' in caught.value.fix and 'layers_2.py' in caught.value.why
    assert 'layers_2.py, differ windows along a side: file 4, model' in caught.value.why
    torch.save({'model': state}, path)
    with pytest.raises(ConfigError, match='rows for 4 classes, whose names are not known'):
        main(['rf-detr', path, *out])
    main(['rf-detr', path, *out, '--num-classes', '3'])
    info = json.loads((tmp_path / 'model' / 'model.json').read_text())
    assert info['classes']['labels'] == ['class 0', 'class 1', 'class 2']


def pair_of(family: str) -> tuple[nn.Module, nn.Module]:
    """A small model of transformers with five classes, and ours."""
    if family == 'rf-detr':
        return rf_pair(5, 5, split=2)
    if family == 'lw-detr':
        return lw_pair(24, split=2)
    transformers, small = pytest.importorskip('transformers'), dict(embed_dim=48, depth=4, num_heads=3)
    if family == 'eomt':
        theirs = transformers.EomtForUniversalSegmentation(
            transformers.EomtConfig(**CONTEXT, image_size=64, mlp_ratio=4)
        )
        vit = ViT('vit_small_patch14_reg4_dinov2', patch_size=16, img_size=64, timm_args=small)
    else:
        config = transformers.EomtDinov3Config(**CONTEXT, image_size=64, intermediate_size=192, layer_norm_eps=1e-5)
        theirs = transformers.EomtDinov3ForUniversalSegmentation(config)
        vit = ViT('vit_small_patch16_dinov3_qkvb', img_size=64, timm_args=small)
    return theirs, EoMT(vit, num_queries=6, num_blocks=2, num_classes={'sem': 5})


@pytest.mark.parametrize('family', ['rf-detr', 'lw-detr', 'eomt', 'eomt-dinov3'])
def test_what_transformers_saves_predicts_as_the_model_that_was_saved(family, tmp_path):
    theirs, ours = pair_of(family)
    randomise(theirs)
    theirs.config.id2label = dict(enumerate('abcde'))
    theirs.save_pretrained(tmp_path)  # under the names of its publisher, not those of the module
    info = read_info([tmp_path], family)
    assert list(info.classes) == list('abcde') and info.split in (None, 2)
    load_published(ours, read_weights(tmp_path), FAMILIES[family], where=family)
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, (got, *_) = theirs.eval()(imgs), ours.eval()(imgs).values()
    if 'eomt' in family:
        assert relative_error(got.class_logits, wanted.class_queries_logits) < 1e-4
        assert relative_error(got.mask_logits, wanted.masks_queries_logits) < 1e-4
    else:
        assert relative_error(got.class_logits, wanted.logits) < 1e-4
        assert relative_error(got.boxes, wanted.pred_boxes) < 1e-4


@pytest.mark.parametrize(('size', 'side'), [('s_coco_576', 576), ('s_coco_560', 560)])
def test_a_checkpoint_that_states_nothing_is_known_by_its_tensors(size, side):
    kind, config = rf_sized(size)
    with torch.device('meta'):
        state = kind(config).state_dict()
    cfg = architecture.choose_config('rf-detr', FAMILIES['rf-detr'], state, PeerInfo())
    assert cfg.filename.endswith(f'rf_detr_dinov2_{size}.py')
    assert cfg['val_dataloader']['dataset']['transforms']['resize']['size'] == side


def test_the_config_of_a_size_is_that_of_the_images_of_a_checkpoint(monkeypatch):
    """EoMT on DINOv3 has no table of positions: the models of both sizes have the same tensors."""
    family = FAMILIES['eomt-dinov3']
    cfg = load_config('configs/detection/eomt_dinov3_l_coco_1280.py')
    with torch.device('meta'):
        network = build(without_pretrained(cfg.model), classes={'labels': list('abc')}).network
        state = {f'network.{name}': value for name, value in network.state_dict().items()}
    state = {name.replace('.backbone.model.', '.encoder.backbone.'): value for name, value in state.items()}
    both = [path for path in architecture.configs_of('eomt-dinov3') if '_coco_' in path]
    assert [path.rpartition('_')[2] for path in both] == ['640.py', '1280.py']
    monkeypatch.setattr(architecture, 'configs_of', lambda family: both)
    chosen = architecture.choose_config('eomt-dinov3', family, state, PeerInfo(list('abc'), size=1280))
    assert chosen.filename.endswith('eomt_dinov3_l_coco_1280.py')


@pytest.mark.parametrize('kind', ['Dinov2', 'ViT'])
def test_a_backbone_reads_a_folder_of_transformers(kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16)
    sizes |= dict(intermediate_size=192) if kind == 'ViT' else {}
    theirs = getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**sizes))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    name = 'vit_small_patch14_dinov2' if kind == 'Dinov2' else 'vit_small_patch16_224'
    small = dict(patch_size=16, img_size=64, timm_args=dict(embed_dim=48, depth=2, num_heads=3))
    ours = ViT(name, pretrained=tmp_path, **small).model.eval()
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(ours.forward_features(imgs), theirs.eval()(imgs).last_hidden_state) < 1e-4


def test_a_folder_without_a_config_of_transformers_is_none(tmp_path):
    (tmp_path / 'model.safetensors').touch()
    with pytest.raises(CheckpointError, match='no weight file') as caught:
        read_weights(tmp_path)
    assert str(tmp_path / 'model.safetensors') in caught.value.fix
    (tmp_path / 'config.json').write_text('[]')
    with pytest.raises(CheckpointError, match="cannot read 'config.json'"):
        read_info([tmp_path], 'rf-detr')


def test_files_that_say_nothing_leave_all_open(tmp_path):
    torch.save({'weight': torch.zeros(2)}, tmp_path / 'plain.pth')
    assert read_info([tmp_path / 'plain.pth'], 'rf-detr') == PeerInfo()
