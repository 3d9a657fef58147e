"""LoRA runs: checkpoints hold what was trained, resume exactly, and leave a model folder that needs no other file."""

from __future__ import annotations

import shutil

import pytest
import torch

from vitdense.backbones.vit import ViT
from vitdense.checkpoints.model_folder import read_model_folder
from vitdense.checkpoints.omitted_weights import describe_omitted, merge_and_complete
from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError
from vitdense.inference.from_config import read_checkpoint_model
from vitdense.storage.weights import save_weights
from vitdense.train.tester import make_tester

LORA = "+model.network.backbone.lora=dict(type='vitdense.layers.lora.Lora', rank=2, targets=('attn','mlp'))"
SMALL = dict(embed_dim=24, depth=2, num_heads=2, proj_drop_rate=0.1)


@pytest.fixture
def pretrained(tmp_path):
    """A file of pretrained weights for the tiny run."""
    vit = ViT('vit_tiny_patch16_224', patch_size=16, img_size=64, timm_args=SMALL)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_weights(tmp_path / 'vit.safetensors', vit.model.state_dict())
    return tmp_path / 'vit.safetensors'


@pytest.fixture
def options(pretrained):
    return (f'+model.network.backbone.pretrained={pretrained}', LORA, 'optim_wrapper.optimizer.lr=1e-2')


def logits(model) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.eval().network(torch.randn(2, 3, 64, 64))['sem'].logits


def test_checkpoints_hold_trained_weights_only(trainer, options, tmp_path):
    runner = trainer('run', options)
    trained = {name for name, value in runner.network_model.named_parameters() if value.requires_grad}
    runner.train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000008.pth')
    buffers = {name for name, _ in runner.network_model.named_buffers()}
    assert trained <= set(content['state_dict']) <= trained | buffers
    assert set(content['omitted_weights']) == set(runner.network_model.state_dict()) - set(content['state_dict'])
    assert set(read_checkpoint(tmp_path / 'run' / 'best.pth')['state_dict']) == set(content['state_dict'])
    names = {name for name in trained if 'backbone' in name}
    assert len(names) == 2 * 4 * 2 and all(name.endswith(('lora_a', 'lora_b')) for name in names)


def test_without_pretrained_weights_none_are_omitted(trainer, tmp_path):
    runner = trainer('run', (LORA, 'schedule.max_iters=1', 'schedule.val_interval=1', 'schedule.warmup_iters=0'))
    runner.train()
    assert (
        set(runner.train_loop.state()['state_dict']) == set(runner.network_model.state_dict())
        and not runner.train_loop.omitted
    )


def test_stopped_and_resumed_equals_uninterrupted(trainer, options, tmp_path):
    options = (*options, 'schedule.decay=constant')
    trainer('whole', options).train()
    trainer('parts', (*options, 'schedule.max_iters=4')).train()
    content = read_checkpoint(tmp_path / 'parts' / 'step_000004.pth')
    trainer('parts', options, checkpoint=content).train()
    whole, parts = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('whole', 'parts'))
    for key in ('state_dict', 'training_state_dict'):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    assert whole['omitted_weights'] == parts['omitted_weights']


def test_a_run_leaves_a_merged_model_that_needs_no_other_file(config_file, options, pretrained, tmp_path, one_thread):
    runner = train(load_config(config_file, options), work_dir=tmp_path / 'run', device='cpu')
    checkpoint = tmp_path / 'run' / 'best.pth'
    scores = make_tester(load_config(config_file, options), tmp_path / 'test', checkpoint, device='cpu').test()
    dumped = tmp_path / 'run' / 'config.py'
    from_config, info = read_checkpoint_model(dumped, checkpoint)
    learned = [value for name, value in read_checkpoint(checkpoint)['state_dict'].items() if name.endswith('lora_b')]
    assert all(value.any() for value in learned)

    pretrained.rename(pretrained.with_name('gone'))
    model, folder = read_model_folder(tmp_path / 'run' / 'model')
    for recipe in (folder['recipe'], info['recipe']):
        assert 'lora' not in recipe['network']['backbone'] and not recipe['network']['backbone']['pretrained']
    assert not any('lora' in name for name in model.state_dict())
    torch.testing.assert_close(logits(model), logits(from_config), atol=1e-5, rtol=1e-5)
    recipe, state = merge_and_complete(runner.network_model, {'lora': None}, runner.network_model.state_dict())
    model.load_state_dict(state)
    torch.testing.assert_close(logits(model), logits(runner.network_model), atol=1e-5, rtol=1e-5)

    again = make_tester(load_config(dumped), tmp_path / 'test', tmp_path / 'run' / 'model', device='cpu').test()
    assert again['sem/mIoU'] == pytest.approx(scores['sem/mIoU'], abs=1e-3)


def test_other_pretrained_weights_are_refused(trainer, options, config_file, pretrained, tmp_path):
    trainer('run', (*options, 'schedule.max_iters=2')).train()
    checkpoint = tmp_path / 'run' / 'step_000002.pth'
    content = read_checkpoint(checkpoint)
    for others in (options[1:], options[:1]):  # no pretrained weights; no LoRA
        with pytest.raises(CheckpointError, match='pretrained tensors, of which the model loads 0'):
            trainer('again', others, checkpoint=content)

    shutil.copy(pretrained, tmp_path / 'kept')
    vit = ViT('vit_tiny_patch16_224', pretrained=pretrained, patch_size=16, img_size=64, timm_args=SMALL)
    with torch.no_grad():
        vit.model.blocks[1].mlp.fc1.weight *= 1.01
    save_weights(pretrained, vit.model.state_dict())
    for attempt in (
        lambda: trainer('again', options, checkpoint=content),
        lambda: trainer('again', options, weights=checkpoint),
        lambda: make_tester(load_config(config_file, options), tmp_path / 'test', checkpoint, device='cpu'),
    ):
        with pytest.raises(CheckpointError, match='these are others') as caught:
            attempt()
        assert 'blocks.1.mlp.fc1.weight' in caught.value.why
    shutil.copy(tmp_path / 'kept', pretrained)
    runner = trainer('again', options, weights=checkpoint)
    assert describe_omitted(runner.network_model) == content['omitted_weights']
    state = runner.network_model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in content['state_dict'].items())
