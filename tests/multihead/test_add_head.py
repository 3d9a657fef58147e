"""A head is added to a trained model: it is trained, old outputs stay the same to the bit; heads are saved alone."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tools.merge_heads as tools_merge_heads
import vitdense
from tests.conftest import CONFIG
from vitdense.checkpoints.model_folder import read_model_folder, save_model_folder
from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.dry_run import dry_run
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError, ConfigError
from vitdense.multihead.add_head import choose_start, requested_head
from vitdense.multihead.merge import merge_heads, split_heads
from vitdense.registry import build
from vitdense.storage.weights import save_weights
from vitdense.train.build import make_trainer
from vitdense.train.runner import DenseRunner

CLASSIFY = """
from vitdense.heads.classify import ClassHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.tasks.classification import ClassificationTask

model['network']['branches'] = dict(cls=dict(
    adapter=dict(type=PlainMaps, layers=(0,)), head=dict(type=ClassHead, pool='average', norm='batch')))
model['tasks'] = dict(cls=dict(type=ClassificationTask))
val_evaluator = [dict(type=Accuracy, head='cls')]
test_evaluator = val_evaluator
checkpoint = dict(interval=4, keep=2, best='cls/top1', rule='greater')
"""

SHORT = ('schedule.max_iters=4', 'schedule.val_interval=4')


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    """Two configs - a segmentation, and a classifier with another ViT, which is not read - and what they left.

    `sem/` is the run of the segmentation, whose head has batch statistics and dropout; `both/` added the classifier.
    """
    project = tmp_path_factory.mktemp('heads')
    (project / 'segment.py').write_text(CONFIG)
    (project / 'classify.py').write_text(CONFIG.replace('embed_dim=24', 'embed_dim=16') + CLASSIFY)
    torch.set_num_threads(1)
    train(load_config(project / 'segment.py'), work_dir=project / 'sem', device='cpu')
    add(project, project / 'both', project / 'sem' / 'model')
    return project


def add(project: Path, folder: Path, weights: Path, *options: str) -> DenseRunner:
    """Add the classifier to the model at `weights`."""
    cfg = load_config(project / 'classify.py', options)
    return train(cfg, work_dir=folder, add_head='cls', weights=str(weights), device='cpu')


def outputs(folder: Path, head: str = 'sem') -> torch.Tensor:
    model, _ = read_model_folder(folder)
    imgs = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model.eval().network(imgs)[head].logits


def test_old_predictions_stay_bit_equal(project):
    folders = [project / name / 'model' for name in ('sem', 'both')]
    before, after = (load_file(folder / 'model.safetensors') for folder in folders)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(outputs(folders[1]), outputs(folders[0]))
    new = {name for name in after if name not in before}
    assert new and all(name.startswith('network.heads.cls.') for name in new)
    info = json.loads((folders[1] / 'model.json').read_text())
    assert set(info['classes']) >= {'semantic', 'image_label'} and list(info['recipe']['tasks']) == ['sem', 'cls']
    log = (project / 'both' / 'log.txt').read_text()
    assert "the head 'cls' is trained; the backbone and sem are frozen" in log


@pytest.mark.parametrize('source', ['', 'step_000008.pth'])
def test_a_work_directory_and_a_checkpoint_are_trained_models_too(project, tmp_path, source):
    runner = add(project, tmp_path, project / 'sem' / source, 'schedule.max_iters=2', 'schedule.val_interval=2')
    after = runner.network_model.state_dict()
    path = project / 'sem' / (source or 'model/model.safetensors')
    state = read_checkpoint(path)['state_dict'] if source else load_file(path)
    assert state and all(torch.equal(after[name], value) for name, value in state.items())
    assert runner.network_model.network.trainable_branches == ('cls',)


def test_an_interrupted_run_goes_on(project, tmp_path):
    cut = tmp_path / 'cut'
    shutil.copytree(project / 'both', cut)
    for path in cut.glob('step_000008.pth*'):
        path.unlink()
    (cut / 'last_checkpoint').write_text('step_000004.pth\n')
    again = train(load_config(project / 'both' / 'config.py'), work_dir=cut, resume='auto', device='cpu')
    whole = read_checkpoint(project / 'both' / 'step_000008.pth')['training_state_dict']
    state = again.network_model.state_dict()
    assert whole and all(torch.equal(state[name], value) for name, value in whole.items())
    assert 'cls.loss_ce' in (cut / 'metrics.csv').read_text() and 'sem.loss' not in (cut / 'metrics.csv').read_text()


def test_the_config_may_say_it_and_a_dry_run_tries_it(project):
    path = project / 'says_it.py'
    path.write_text(
        (project / 'classify.py').read_text() + f"add_head = dict(name='cls', weights='{project / 'sem'}')\n"
    )
    losses = dry_run(load_config(path), device='cpu')['losses']
    assert {'cls.loss_ce'} == {name for name in losses if 'loss_' in name}


def test_weights_alone_need_a_config_of_the_whole_model(project, tmp_path):
    plain = tmp_path / 'plain.safetensors'
    save_weights(plain, load_file(project / 'sem' / 'model' / 'model.safetensors'))
    with pytest.raises(CheckpointError, match='parameters matched'):
        add(project, tmp_path / 'x', plain)
    whole = CLASSIFY.replace("['branches'] = dict(", "['branches'].update(").replace("['tasks'] = ", "['tasks'] |= ")
    (tmp_path / 'classify.py').write_text(CONFIG + whole)
    runner = add(tmp_path, tmp_path / 'y', plain, 'schedule.max_iters=2', 'schedule.val_interval=2')
    assert torch.equal(outputs(runner.folder / 'model'), outputs(project / 'sem' / 'model'))


@pytest.mark.parametrize('source', ['model', 'step_000004.pth'])
def test_a_model_with_lora_gets_a_head_too(project, tmp_path, source):
    lora = ("+model.network.backbone.lora=dict(type='vitdense.layers.lora.Lora',rank=2)", *SHORT)
    train(load_config(project / 'segment.py', lora), work_dir=tmp_path / 'sem', device='cpu')
    add(project, tmp_path / 'both', tmp_path / 'sem' / source, *SHORT)
    folders = [tmp_path / name / 'model' for name in ('sem', 'both')]
    assert torch.equal(outputs(folders[1]), outputs(folders[0]))
    assert not any('lora' in name for name in load_file(folders[1] / 'model.safetensors'))


def _add(project: Path, folder: Path, rank: int) -> dict[str, torch.Tensor]:
    options = (*SHORT, 'train_dataloader.batch_size=4')  # two images for each rank: batch normalisation needs them
    cfg, _ = requested_head(load_config(project / 'classify.py', options), 'cls', str(project / 'sem' / 'model'))
    runner = make_trainer(cfg, folder, start=choose_start(cfg), device='cpu')
    start = {f'start {name}': value.clone() for name, value in runner.network_model.state_dict().items()}
    runner.train()
    return start | {name: value.clone() for name, value in runner.network_model.state_dict().items()}


def test_two_ranks_add_the_same_head_and_leave_the_old_ones_alone(project, tmp_path, run_ranks):
    first, second = run_ranks(partial(_add, project, tmp_path / 'both'))
    before = load_file(project / 'sem' / 'model' / 'model.safetensors')
    assert before and all(torch.equal(each[name], value) for each in (first, second) for name, value in before.items())
    new = {name for name in first if name.startswith('network.heads.cls.')}
    learned = [name for name in new if not torch.equal(first[name], first[f'start {name}'])]
    assert 'network.heads.cls.classifier.weight' in learned
    statistics = {name for name in new if 'running_' in name}  # of the images of each rank
    assert all(torch.equal(first[name], second[name]) for name in new - statistics)


@pytest.mark.parametrize(
    ('config', 'name', 'weights', 'message'),
    [
        ('classify.py', 'clz', 'sem', "no branch 'clz'; did you mean 'cls'"),
        ('classify.py', 'cls', None, 'nothing says which trained model'),
        ('segment.py', 'sem', 'sem', "name = 'sem'"),
    ],
)
def test_what_cannot_be_added(project, config, name, weights, message):
    with pytest.raises(ConfigError, match=message):
        dry_run(load_config(project / config), add_head=name, weights=weights and str(project / weights), device='cpu')


def test_parts_that_are_not_ours_are_refused_with_a_way_out(project, tmp_path):
    model, info = read_model_folder(project / 'sem' / 'model')
    recipe = json.loads(json.dumps(info['recipe']))
    recipe['network']['branches']['sem']['head']['type'] = 'os.system'
    save_model_folder(tmp_path / 'own', recipe, model.state_dict(), metainfo=info)
    with pytest.raises(CheckpointError, match='describes the whole model'):
        dry_run(load_config(project / 'classify.py'), add_head='cls', weights=str(tmp_path / 'own'), device='cpu')


def test_other_classes_of_a_field_that_is_read_are_refused(project, tmp_path):
    model, info = read_model_folder(project / 'sem' / 'model')
    classes = {'semantic': ['ground', 'circle', 'square', 'triangle']}
    save_model_folder(tmp_path / 'renamed', info['recipe'], model.state_dict(), metainfo={'classes': classes})
    text = CONFIG.replace('sem=dict', 'again=dict').replace("head='sem'", "head='again'").replace('sem/', 'again/')
    (tmp_path / 'second.py').write_text(text)
    with pytest.raises(ConfigError, match="different classes of 'semantic'"):
        dry_run(load_config(tmp_path / 'second.py'), add_head='again', weights=str(tmp_path / 'renamed'), device='cpu')


# ------------------------------------------------------------------------------------------------------ head files


def test_a_head_is_small_and_joins_another_model_of_its_backbone(project, tmp_path):
    base, both, head = (
        project / 'sem' / 'model',
        project / 'both' / 'model',
        project / 'both' / 'heads' / 'cls.safetensors',
    )
    assert set(load_file(head)) == {
        name.replace('network.heads.cls', 'head')
        for name in load_file(both / 'model.safetensors')
        if name.startswith('network.heads.cls.')
    }
    merge_heads(base, {'cls': both, 'kind': head}, tmp_path / 'out')
    assert torch.equal(outputs(tmp_path / 'out'), outputs(base))
    assert torch.equal(outputs(tmp_path / 'out', 'kind'), outputs(both, 'cls'))
    assert torch.equal(outputs(tmp_path / 'out', 'cls'), outputs(both, 'cls'))
    result = vitdense.load(tmp_path / 'out', device='cpu')(project / 'sem' / 'sample.png')
    assert set(result.predictions) == {'sem', 'kind', 'cls'} and 'circle' in str(result.summary()['kind'])


def test_a_model_comes_apart_and_together_again(project, tmp_path):
    both = project / 'both' / 'model'
    files = split_heads(both, tmp_path / 'heads')
    assert [path.name for path in files] == ['sem.json', 'cls.json']
    merge_heads(project / 'sem' / 'model', {'cls': files[1]}, tmp_path / 'again')
    first, second = (load_file(folder / 'model.safetensors') for folder in (both, tmp_path / 'again'))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def change_model(folder: Path, target: Path, change) -> Path:
    """Write a copy of a model folder whose recipe or weights are others."""
    model, info = read_model_folder(folder)
    recipe, state = json.loads(json.dumps(info['recipe'])), dict(model.state_dict())
    change(recipe['network']['backbone'], state)
    save_model_folder(target, recipe, state, metainfo=info)
    return target


def other_weights(backbone: dict, state: dict) -> None:
    name = 'network.backbone.model.norm.bias'
    state[name] = state[name] + 1e-6


def windows(backbone: dict, state: dict) -> None:
    backbone['windows'] = dict(type='vitdense.backbones.windows.WindowPartition', split=2, global_blocks=[1])


def other_patches(backbone: dict, state: dict) -> None:
    backbone['patch_size'] = 8
    name = 'network.backbone.model.patch_embed.proj.weight'
    state[name] = state[name][..., ::2, ::2]
    backbone['img_size'] = 32


def interacting(backbone: dict, state: dict) -> None:
    vit = dict(backbone)
    backbone.clear()
    backbone.update(
        type='vitdense.adapters.vit_adapter.ViTAdapter', vit=vit, num_heads=2, layers=[0, 1], add_features='last'
    )
    for name in [name for name in state if name.startswith('network.backbone.')]:
        state['network.backbone.vit.' + name.removeprefix('network.backbone.')] = state.pop(name)
    created = build(json.loads(json.dumps(backbone)))
    state |= {f'network.backbone.{name}': x for name, x in created.state_dict().items() if not name.startswith('vit.')}


def other_normalisation(backbone: dict, state: dict) -> None:
    backbone['name'] = 'vit_small_patch16_224.dino'  # the same blocks here, but mean and std of ImageNet, not one half


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        (other_weights, 'other weights'),
        (windows, 'other windows'),
        (other_normalisation, 'other mean, std, ViT'),
        (other_patches, 'other weights, patch size'),
        (interacting, 'other weights, interacting adapter'),
    ],
)
def test_a_head_of_another_backbone_is_refused(project, tmp_path, change, what):
    base = change_model(project / 'sem' / 'model', tmp_path / 'other', change)
    with pytest.raises(CheckpointError) as rejected:
        merge_heads(base, {'cls': project / 'both' / 'heads' / 'cls.json'}, tmp_path / 'out')
    assert rejected.value.message.startswith("the head 'cls' was trained on another backbone")
    assert rejected.value.message.endswith(what)
    assert not (tmp_path / 'out').exists()


def test_training_options_and_spelt_out_defaults_are_no_other_backbone(project, tmp_path):
    def same(backbone: dict, state: dict) -> None:
        backbone.update(drop_path=0.0, frozen=True, checkpointing=True, windows=None, stem='patch', img_size=[64, 64])
        backbone['timm_args']['proj_drop_rate'] = 0.0

    merge_heads(
        change_model(project / 'sem' / 'model', tmp_path / 'same', same),
        {'cls': project / 'both' / 'heads' / 'cls.json'},
        tmp_path / 'out',
    )


@pytest.mark.parametrize('fault', ['code', 'weights', 'names', 'taken'])
def test_bad_heads_are_refused(project, tmp_path, fault):
    shutil.copytree(project / 'both' / 'heads', tmp_path / 'heads')
    name, head_file = 'cls', tmp_path / 'heads' / 'cls.json'
    if fault == 'code':
        content = json.loads(head_file.read_text())
        content['branch']['head']['type'] = 'os.system'
        head_file.write_text(json.dumps(content))
    elif fault == 'weights':
        weights = head_file.with_suffix('.safetensors')
        save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    elif fault == 'names':
        head_file.unlink()
    else:
        name = 'sem'
    with pytest.raises((CheckpointError, ConfigError)):
        merge_heads(project / 'sem' / 'model', {name: head_file}, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_tool_merges_and_splits(project, tmp_path, capsys):
    head, base, out = (project / name for name in ('both/heads/cls.json', 'sem/model', 'merged'))
    tools_merge_heads.main([str(base), '--head', f'cls={head}', '--out', str(out)])
    assert 'sem, cls on one backbone' in capsys.readouterr().out
    tools_merge_heads.main([str(out), '--split', str(tmp_path)])
    assert {path.name for path in tmp_path.glob('*.json')} == {'sem.json', 'cls.json'}
    for words in (
        ['--out', 'x'],
        ['--head', 'cls', '--out', 'x'],
        ['--head', 'a=b', '--head', 'a=c', '--out', 'x'],
        [],
    ):
        with pytest.raises(ConfigError):
            tools_merge_heads.main([str(base), *words])
