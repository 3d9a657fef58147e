"""A model folder gives the model back, and nothing in it can run."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from vitdense.checkpoints.model_folder import read_model_folder, save_model_folder
from vitdense.checkpoints.trained import read_state
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError
from vitdense.inference.from_config import read_checkpoint_model
from vitdense.registry import build


@pytest.fixture
def folder(config_file, tmp_path):
    """A model folder with random weights."""
    cfg = load_config(config_file)
    recipe = copy.deepcopy(cfg['model'])
    recipe['network']['backbone']['pretrained'] = 'somewhere/that/is/gone.safetensors'
    classes = {'semantic': ['background', 'circle', 'square', 'triangle']}
    model = build({**cfg['model']}, classes=classes)
    transforms = [dict(type='vitdense.data.transforms.common.ResizeShortSide', size=64)]
    path = tmp_path / 'model'
    save_model_folder(
        path, recipe, model.state_dict(), metainfo={'classes': classes, 'palette': {}}, transforms=transforms
    )
    return path, model.eval()


def test_the_model_comes_back(folder):
    path, model = folder
    again, info = read_model_folder(path)
    imgs = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, second = (one.eval().network(imgs)['sem'].logits for one in (model, again))
    assert torch.equal(first, second)
    assert again.classes == model.classes and info['transforms'][0]['size'] == 64
    assert 'gone' not in (path / 'model.json').read_text()
    state, context = read_state(path)
    assert set(state) == set(model.state_dict()) and context['metainfo']['classes'] == model.classes


def test_writing_again_replaces_the_folder_as_a_whole(folder):
    path, model = folder
    (path / 'old').write_text('x')
    save_model_folder(path, {'type': 'x'}, model.state_dict(), metainfo={})
    assert not (path / 'old').exists() and json.loads((path / 'model.json').read_text())['recipe'] == {'type': 'x'}
    assert [item.name for item in path.parent.iterdir() if 'model.' in item.name] == []


def edit(path, change) -> None:
    content = json.loads((path / 'model.json').read_text())
    change(content)
    (path / 'model.json').write_text(json.dumps(content))


@pytest.mark.parametrize(
    'change',
    [
        lambda c: c['recipe'].update(type='os.system'),
        lambda c: c['recipe'].update(type='vitdense.storage.weights.os'),
        lambda c: c['recipe'].update(type='vitdense.data.transforms.common.Path'),
        lambda c: c['recipe']['network'].update(type='vitdense.checkpoints.run.write_checkpoint'),
        lambda c: c['recipe']['network'].update(type='vitdense.backbones.vit.create'),
        lambda c: c['recipe']['network']['backbone'].update(name='hf-hub:somebody/something'),
        lambda c: c['recipe']['network']['backbone']['timm_args'].update(checkpoint_path='/etc/passwd'),
        lambda c: c['transforms'].append({'type': 'subprocess.Popen', 'args': ['touch', 'marker']}),
        lambda c: c['weights'].update(file='../other.safetensors'),
        lambda c: c['weights'].update(sha256='0' * 64),
        lambda c: c.update(format=99),
        lambda c: c.pop('recipe'),
    ],
)
def test_what_does_not_belong_is_refused(folder, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit(folder[0], change)
    with pytest.raises(CheckpointError):
        read_model_folder(folder[0])
    assert not (tmp_path / 'marker').exists()


def test_damage_is_found(folder, tmp_path):
    weights = folder[0] / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match='checksum'):
        read_model_folder(folder[0])
    (folder[0] / 'model.json').write_text('{')
    with pytest.raises(CheckpointError, match='not a model folder'):
        read_model_folder(folder[0])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'best.pth').write_bytes(b'')
    for path in (tmp_path / 'empty', tmp_path / 'best.pth'):  # or made by other programs
        with pytest.raises(CheckpointError, match='not a model folder') as caught:
            read_model_folder(path)
        assert 'import_weights.py' in caught.value.fix
    with pytest.raises(CheckpointError, match="there is no folder '.*emty/model'; did you mean 'empty'?"):
        read_model_folder(tmp_path / 'emty/model')


def test_a_checkpoint_brings_its_classes_and_averaged_weights(trainer, config_file, tmp_path):
    trainer('run', ('schedule.max_iters=2',)).train()
    path = tmp_path / 'run' / 'step_000002.pth'
    model, info = read_checkpoint_model(config_file, path)
    saved = torch.load(path, weights_only=True)
    name = 'network.heads.sem.classifier.weight'
    name = name if name in saved['state_dict'] else next(key for key in saved['training_state_dict'] if 'heads' in key)
    assert torch.equal(model.state_dict()[name], saved['state_dict'][name])
    assert info['classes'] == saved['classes'] and info['transforms'] == []
    assert read_state(path)[1]['averaged'] is True
