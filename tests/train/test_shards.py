"""A run from shards, stopped and continued, is bit for bit the run from files."""

from __future__ import annotations

import pytest

from tests.data.shards.test_shards import shards_of, write_files
from tests.train.test_resume import StopAt, equal
from vitdense.checkpoints.run import find_checkpoint, read_checkpoint


def options_of(root, arguments, workers=0) -> tuple[str, ...]:
    recipe = dict(type='vitdense.data.segmentation.SegmentationDataset', root=str(root), **arguments)
    sections = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    flip = {'transforms': [{'type': 'vitdense.data.transforms.common.RandomFlip'}]}
    recipes = (recipe | flip, recipe | {'evaluation': True}, recipe | {'evaluation': True})
    datasets = (f'{section}.dataset={each!r}' for section, each in zip(sections, recipes, strict=True))
    return (*datasets, f'train_dataloader.num_workers={workers}', 'schedule.val_interval=8')


def test_a_run_from_shards_is_that_from_files(trainer, tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    write_files(data, 'segmentation')
    _, arguments = shards_of(data, 'segmentation')
    files = dict(images='images/train', labels='masks/train', classes='classes.txt')
    trainer('files', options_of(data, files)).train()

    sharded = options_of(data / 'out', arguments, workers=1)
    runner = trainer('shards', sharded)
    runner._hooks.insert(0, StopAt(5))
    with pytest.raises(SystemExit):
        runner.train()
    content = read_checkpoint(find_checkpoint(tmp_path / 'shards'))
    assert content['step'] == 5
    trainer('shards', sharded, checkpoint=content).train()
    ours, theirs = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('shards', 'files'))
    for key in ('state_dict', 'training_state_dict', 'optimizer', 'samples_seen'):
        assert equal(ours[key], theirs[key]), key
