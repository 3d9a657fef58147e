"""A pretrained file decides patch size and table of positions; what a run leaves is read again without that file."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.conftest import CONFIG
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.image_sizes import sizes_in, with_sizes
from vitdense.checkpoints.model_folder import read_model_folder, save_model_folder
from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.train import train
from vitdense.config.dump import config_text
from vitdense.config.load import load_config
from vitdense.inference.from_config import read_checkpoint_model
from vitdense.registry import build
from vitdense.train.build import make_trainer
from vitdense.train.start import FromCheckpoint, FromWeights
from vitdense.train.tester import make_tester

SLIM = dict(embed_dim=24, depth=2, num_heads=2)


@pytest.mark.parametrize(
    ('size', 'arguments'),
    [((48, 48), ''), ((48, 80), 'pretrained_img_size=(48, 80),'), ((48, 80), 'img_size=(48, 80),')],
)
def test_trained_models_need_no_pretrained_file(tmp_path: Path, size: tuple[int, int], arguments: str) -> None:
    own = timm.create_model('vit_tiny_patch16_224', img_size=size, patch_size=8, num_classes=0, **SLIM)
    save_file(own.state_dict(), tmp_path / 'w.safetensors')
    vit = 'patch_size=16, img_size=64, drop_path=0.2,\n                      timm_args'
    assert vit in CONFIG
    (tmp_path / 'a.py').write_text(CONFIG.replace(vit, f"{arguments} pretrained='{tmp_path}/w.safetensors', timm_args"))
    cfg = load_config(tmp_path / 'a.py', ['schedule.max_iters=2', 'schedule.val_interval=2', 'ema=None'])
    trained = train(cfg, work_dir=tmp_path / 'run', device='cpu')
    state = trained.network_model.state_dict()
    (tmp_path / 'w.safetensors').unlink()
    step = tmp_path / 'run' / 'step_000002.pth'
    resumed = make_trainer(
        cfg, tmp_path / 'on', device='cpu', start=FromCheckpoint(read_checkpoint(step))
    ).network_model
    models = [
        read_model_folder(tmp_path / 'run')[0],
        read_checkpoint_model(tmp_path / 'run' / 'config.py', step)[0],
        read_checkpoint_model(tmp_path / 'a.py', step)[0],
        make_tester(load_config(tmp_path / 'a.py'), tmp_path / 'test', step, device='cpu').network_model,
    ]
    table = 'network.backbone.model.pos_embed'
    assert all(torch.equal(model.state_dict()[table], state[table]) for model in models)
    assert all(model.network.backbone.grid == (size[0] // 8, size[1] // 8) for model in [*models, resumed])


def test_sizes_of_a_config_are_kept(tmp_path: Path) -> None:
    (tmp_path / 'a.py').write_text(CONFIG)
    cfg = load_config(tmp_path / 'a.py')
    runner = make_trainer(cfg, tmp_path / 'run', device='cpu')
    assert config_text(runner.config) == config_text(cfg)
    recipe = {'network': {'backbone': {'vit': {'img_size': 32, 'patch_size': None}, 'levels': 4}}}
    assert sizes_in(recipe) == {'img_size': 32}
    completed = with_sizes(recipe, {'img_size': 64, 'patch_size': 8})
    assert completed['network']['backbone'] == {'vit': {'img_size': 32, 'patch_size': 8}, 'levels': 4}
    assert with_sizes({'network': {'backbone': object()}}, {'img_size': 64})['network']['backbone'] is not None


def test_weights_of_other_sizes_are_resampled_as_a_pretrained_file_is(tmp_path: Path, caplog) -> None:
    (tmp_path / 'a.py').write_text(CONFIG)  # patches of 16, images of 64
    cfg = load_config(tmp_path / 'a.py')
    recipe = cfg.replaced().model
    recipe.network.backbone.update(patch_size=8, img_size=(48, 80))
    metainfo = make_trainer(cfg, tmp_path / 'metainfo', device='cpu').metainfo
    trained = build(recipe, classes=metainfo['classes'])
    save_model_folder(tmp_path / 'model', recipe, trained.state_dict(), metainfo=metainfo)
    save_file(trained.network.backbone.model.state_dict(), tmp_path / 'w.safetensors')
    sizes = dict(img_size=64, patch_size=16, pretrained_img_size=(48, 80))
    backbone = ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'w.safetensors', timm_args=SLIM, **sizes)

    cfg = load_config(tmp_path / 'a.py')
    with caplog.at_level('INFO', 'vitdense'):
        runner = make_trainer(cfg, tmp_path / 'run', device='cpu', start=FromWeights(tmp_path / 'model'))
    state = runner.network_model.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(state[f'network.backbone.{name}'], value), name
    assert 'kernel resampled from 8 x 8 to 16 x 16' in caplog.text and 'from 6 x 10 to 4 x 4' in caplog.text
    cfg.model.network.backbone.update(patch_size=None, img_size=None)  # nothing asks for other sizes
    runner = make_trainer(cfg, tmp_path / 'same', device='cpu', start=FromWeights(tmp_path / 'model'))
    state = runner.network_model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.state_dict().items())
    assert runner.config.model.network.backbone.patch_size == 8
