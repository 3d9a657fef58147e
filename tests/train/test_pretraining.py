"""From images without labels to an encoder that others load: the whole way of a masked autoencoder."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from vitdense import load
from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.test import test as run_test
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.registry import build
from vitdense.train.build import make_trainer
from vitdense.train.start import FromCheckpoint
from vitdense.types import Reconstruction

QUICKSTART = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart'
SLIM = dict(embed_dim=24, depth=2, num_heads=2)
ENCODER = f'model.network.backbone.timm_args={SLIM}'
SHORT = (
    ENCODER,
    'model.network.decoder_channels=16',
    'model.network.decoder_heads=2',
    'amp=off',
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'val_dataloader.dataset.num_images=3',
    'test_dataloader.dataset.num_images=3',
    'schedule.max_iters=4',
    'schedule.val_interval=2',
    'schedule.warmup_iters=1',
    'checkpoint.interval=2',
    'sample_images=2',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """The work directory of four steps of pretraining."""
    before = torch.get_num_threads()
    created = tmp_path_factory.mktemp('mae')
    train(load_config(QUICKSTART / 'shapes_mae.py', SHORT), work_dir=created, device='cpu')
    torch.set_num_threads(before)
    return created


def test_timm_itself_loads_the_encoder(folder):
    arguments = dict(num_classes=0, patch_size=8, img_size=64, **SLIM)
    model = timm.create_model('vit_tiny_patch16_224', **arguments, checkpoint_path=str(folder / 'encoder.safetensors'))
    state = load_file(folder / 'encoder.safetensors')
    assert model.load_state_dict(state, strict=True)
    best = read_checkpoint(folder / 'best.pth')['state_dict']
    assert all(torch.equal(best[f'network.backbone.model.{name}'], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize('file', ['encoder.safetensors', 'model/model.safetensors', 'step_000004.pth'])
def test_one_option_loads_it_into_a_dense_model(folder, file):
    option = f'model.network.backbone.pretrained={folder / file}'
    cfg = load_config(QUICKSTART / 'shapes_segmentation.py', (ENCODER, option))
    model = build(cfg.model, classes={'semantic': ['background', 'circle', 'square', 'triangle']})
    state = model.network.backbone.model.state_dict()
    expected = load_file(folder / 'encoder.safetensors')
    if 'step' not in file:  # the last step need not be the best
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert state.keys() == expected.keys() and model.network.backbone.model.pos_embed.requires_grad


def test_reconstructions_are_left_as_images(folder):
    sheet = np.asarray(Image.open(folder / 'predictions.jpg'))
    assert sheet.shape[1] > 3 * 64 and sheet.std() > 10
    assert (folder / 'labels.jpg').is_file() and (folder / 'curves.png').is_file()


def test_a_resumed_run_hides_the_same_patches(folder, tmp_path):
    cfg = load_config(QUICKSTART / 'shapes_mae.py', (*SHORT, 'sample_images=0'))
    resumed = make_trainer(
        cfg, tmp_path, device='cpu', start=FromCheckpoint(read_checkpoint(folder / 'step_000002.pth'))
    )
    resumed.train()
    expected = read_checkpoint(folder / 'step_000004.pth')['state_dict']
    for name, value in resumed.network_model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_model_folder_and_the_test_tool_give_reconstructions(folder, tmp_path):
    (metric,) = run_test(
        load_config(QUICKSTART / 'shapes_mae.py', SHORT), folder / 'best.pth', out=tmp_path, device='cpu'
    ).items()
    assert metric[0] == 'mae/error' and 0 < metric[1] < 10
    result = load(folder / 'model', device='cpu', amp='off')(np.full((64, 64, 3), 90, np.uint8))
    assert isinstance(result['mae'], Reconstruction) and 'error' in str(result)
    assert result.draw(legend=False).shape == (64, 64, 3) and result.draw().shape[1] > 3 * 64
