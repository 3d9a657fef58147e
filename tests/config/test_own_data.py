"""`--data FOLDER` puts a folder in place of a config's data and leaves everything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.formats.test_labelled_folder import ANNOTATION, image, masks, roboflow_coco, text, voc
from vitdense.config.load import load_config
from vitdense.data.datasets import build_dataset
from vitdense.errors import ConfigError

DETECTION = 'configs/detection/finetune_small.py'


def test_sections_read_the_splits_of_the_folder_with_the_transforms_of_the_config(tmp_path: Path):
    roboflow_coco(tmp_path)
    plain, own = load_config(DETECTION), load_config(DETECTION, data=tmp_path)
    for name, folder in (('train', 'train'), ('val', 'valid'), ('test', 'test')):
        section, before = own[f'{name}_dataloader'], plain[f'{name}_dataloader']
        assert section['dataset']['annotations'] == f'{folder}/_annotations.coco.json'
        assert section['dataset']['transforms'] == before['dataset']['transforms']
        assert section['batch_size'] == before['batch_size']
        dataset = build_dataset(section['dataset'], root=own['data_root'])
        assert len(dataset) == 1 and dataset.metainfo['classes']['labels'] == ['cat']
    assert own['test_dataloader']['dataset']['evaluation'] is True and own['model'] == plain['model']


def test_the_test_section_reads_validation_where_there_is_no_test_split_or_what_is_asked_for(tmp_path: Path):
    voc(tmp_path)
    assert load_config(DETECTION, data=tmp_path)['test_dataloader']['dataset']['split'] == 'val'
    assert load_config(DETECTION, data=tmp_path, split='train')['test_dataloader']['dataset']['split'] == 'train'
    with pytest.raises(ConfigError, match="has no split 'test'"):
        load_config(DETECTION, data=tmp_path, split='test')


def test_a_folder_without_validation_is_an_error_that_says_what_was_found(tmp_path: Path):
    voc(tmp_path)
    (tmp_path / 'ImageSets' / 'Main' / 'val.txt').unlink()
    with pytest.raises(ConfigError, match="has no split 'val'") as caught:
        load_config(DETECTION, data=tmp_path)
    assert 'PASCAL VOC with train' in caught.value.why


@pytest.mark.parametrize('kind', ['boxes', 'masks'])
def test_a_part_of_the_images_for_training_is_held_out_where_there_is_no_validation(tmp_path: Path, kind: str):
    folder = 'JPEGImages' if kind == 'boxes' else 'images/train'
    (voc if kind == 'boxes' else masks)(tmp_path)
    for number in range(9):
        image(tmp_path / folder / f'{number}.jpg')
        if kind == 'boxes':
            text(tmp_path / 'Annotations' / f'{number}.xml', ANNOTATION)
        else:
            shutil.copy(tmp_path / 'masks' / 'train' / 'a.png', tmp_path / 'masks' / 'train' / f'{number}.png')
    if kind == 'boxes':
        text(tmp_path / 'ImageSets' / 'Main' / 'train.txt', ''.join(f'{name}\n' for name in ('a', *range(9))))
        (tmp_path / 'ImageSets' / 'Main' / 'val.txt').unlink()
    else:
        shutil.rmtree(tmp_path / 'images' / 'val')
    config = DETECTION if kind == 'boxes' else 'configs/semantic/linear_vit_ti_camvid.py'
    own = load_config(config, data=tmp_path, held_out=0.3)
    datasets = [
        build_dataset(own[key]['dataset'], root=own['data_root']) for key in ('train_dataloader', 'val_dataloader')
    ]
    files = [{name for name in dataset.image_files()[1]} for dataset in datasets]
    assert [len(each) for each in files] == [7, 3] and not files[0] & files[1]
    assert own['test_dataloader']['dataset']['part'] == own['val_dataloader']['dataset']['part'] == (0.0, 0.3)


def test_labels_of_another_task_are_an_error(tmp_path: Path):
    masks(tmp_path)
    with pytest.raises(ConfigError, match='not for segmentation'):
        load_config(DETECTION, data=tmp_path)
    with pytest.raises(ConfigError, match='not for segmentation'):
        load_config('configs/quickstart/shapes_segmentation.py', data=tmp_path)  # its scenes are drawn, not read


def test_masks_keep_no_meaning_of_the_labels_of_the_config(tmp_path: Path):
    masks(tmp_path)
    own = load_config('configs/semantic/linear_dinov2_s_ade20k.py', data=tmp_path)
    dataset = own['train_dataloader']['dataset']
    assert dataset['classes'] == 'classes.txt' and not dataset.get('reduce_zero_label')


def test_options_come_after_the_folder(tmp_path: Path):
    roboflow_coco(tmp_path)
    text(tmp_path / 'other.txt', 'cat\n')
    options = ['+train_dataloader.dataset.num_images=1', 'train_dataloader.batch_size=2']
    own = load_config(DETECTION, options, data=tmp_path)
    assert own['train_dataloader']['dataset']['num_images'] == 1 and own['train_dataloader']['batch_size'] == 2
