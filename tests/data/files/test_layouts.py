"""What a folder holds is found, and checked as what it is."""

import json

import numpy as np
import pytest
from PIL import Image

from tools import check_data
from vitdense.commands import parser as commandline
from vitdense.data.files.layouts import parts_of
from vitdense.dataset_checks.check_class_folders import check_folders
from vitdense.errors import DataError


def image(path, mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6)).save(path)
    return path


def coco(path, *names):
    images = [dict(id=k, file_name=name, width=8, height=6) for k, name in enumerate(names, 1)]
    objects = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 3, 3])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=objects, categories=[dict(id=1, name='cat')])))
    return path


def leave(*words):
    with pytest.raises(SystemExit) as left:
        commandline.run(check_data.main, [str(word) for word in words])
    return left.value.code


def test_cocos_own_tree_and_roboflows(tmp_path):
    image(tmp_path / 'coco/train2017/1.png')
    train = coco(tmp_path / 'coco/annotations/instances_train2017.json', '1.png')
    coco(tmp_path / 'coco/annotations/captions_train2017.json', '1.png')
    (tmp_path / 'coco/annotations/results.json').write_text('[]')
    assert [part[:3] for part in parts_of(tmp_path / 'coco')] == [('coco', train, tmp_path / 'coco/train2017')]
    image(tmp_path / 'robo/valid/a.png')
    valid = coco(tmp_path / 'robo/valid/_annotations.coco.json', 'a.png')
    assert [part[:3] for part in parts_of(tmp_path / 'robo')] == [('coco', valid, tmp_path / 'robo/valid')]
    lost = coco(tmp_path / 'lost/a.json', '../b.png')
    assert [part[:3] for part in parts_of(tmp_path / 'lost')] == [('coco', lost, None)]
    assert parts_of(lost)[0][:3] == ('coco', lost, None)


def test_label_maps_beside_images_and_class_folders(tmp_path):
    for split in ('train', 'val'):
        image(tmp_path / f'maps/images/{split}/1.jpg')
        image(tmp_path / f'maps/masks/{split}/1.png', 'L')
        image(tmp_path / f'classes/{split}/cat/1.jpg')
    maps, classes = tmp_path / 'maps', tmp_path / 'classes'
    assert [part.data for part in parts_of(maps)] == [maps / 'masks/train', maps / 'masks/val']
    assert [part.images for part in parts_of(maps)] == [maps / 'images/train', maps / 'images/val']
    assert [part[:3] for part in parts_of(classes)] == [
        ('folders', classes / 'train', None),
        ('folders', classes / 'val', None),
    ]
    assert [part[:3] for part in parts_of(classes / 'train')] == [('folders', classes / 'train', None)]
    gray = np.tile(np.arange(100, dtype=np.uint8), (6, 1))
    (tmp_path / 'gray/cat').mkdir(parents=True)
    Image.fromarray(gray).save(tmp_path / 'gray/cat/1.png')
    assert parts_of(tmp_path / 'gray')[0].kind == 'folders'  # a photograph in gray
    assert parts_of(maps / 'masks')[0].kind == 'labels'  # nested label maps stay what they were
    assert parts_of(tmp_path / 'gray', labels=True)[0].kind == 'labels'
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DataError, match='no labelled images'):
        parts_of(tmp_path / 'nothing')


def test_a_pair_one_folder_down_and_labels_that_are_not_read(tmp_path):
    image(tmp_path / 'ade/Data2016/images/training/1.jpg')
    image(tmp_path / 'ade/Data2016/annotations/training/1.png', 'L')
    root = tmp_path / 'ade/Data2016'
    assert [part[:3] for part in parts_of(tmp_path / 'ade')] == [
        ('labels', root / 'annotations/training', root / 'images/training')
    ]
    for folder, suffix in (('voc/JPEGImages', 'voc/Annotations/1.xml'), ('yolo/images', 'yolo/labels/1.txt')):
        image(tmp_path / folder / '1.jpg')
        (tmp_path / suffix).parent.mkdir()
        (tmp_path / suffix).write_text('')
        root, name = suffix.split('/', 1)
        with pytest.raises(DataError, match=f'are not read: {name}') as caught:
            parts_of(tmp_path / root)
        assert 'data.yaml' in caught.value.fix


def test_class_folders_are_counted(tmp_path):
    for name in ('cat/1.jpg', 'cat/deep/2.jpg', 'dog/1.jpg', 'loose.jpg'):
        image(tmp_path / name)
    (tmp_path / 'dog/broken.jpg').write_bytes(b'nothing')
    (tmp_path / 'dog/notes.txt').write_text('')
    (tmp_path / 'emu').mkdir()
    report = check_folders(tmp_path)
    assert report.classes == [('cat', '2', '40.0 %'), ('dog', '2', '40.0 %'), ('emu', '0', '0.0 %')]
    assert dict(report.summary) == {'images': '5', 'classes': '2'}
    assert {(finding.kind, finding.where) for finding in report.findings} == {
        ('loose', 'loose.jpg'),
        ('other', '.txt'),
        ('empty', 'emu'),
        ('image', 'dog/broken.jpg'),
    }
    assert report.counts == dict.fromkeys(('loose', 'other', 'empty', 'image'), 1)
    with pytest.raises(DataError, match='no images'):
        check_folders(tmp_path / 'emu')


def test_the_tool_checks_all_parts_of_a_root(tmp_path, capsys):
    image(tmp_path / 'photos/1.png')
    coco(tmp_path / 'train.json', '1.png')
    coco(tmp_path / 'val.json', '1.png', '2.png')
    (tmp_path / 'odd.json').write_text('{"images": [')
    assert leave(tmp_path, '--out', tmp_path / 'out/report.json') == 3
    out = capsys.readouterr().out
    assert 'train.json' in out and 'no errors' in out and '2.png' in out and 'it is not JSON' in out
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert {name.rsplit('/')[-1]: part['counts'] for name, part in report['parts'].items()} == {
        'train.json': {},
        'val.json': {'image': 1},
        'odd.json': {'file': 1},
    }
    image(tmp_path / 'flowers/rose/1.jpg')
    assert leave(tmp_path / 'flowers') == 0 and 'rose' in capsys.readouterr().out


@pytest.mark.parametrize('count', [1, 7, 70])
@pytest.mark.parametrize('kind', ['image', 'size'])
def test_every_finding_counts(tmp_path, capsys, count, kind):
    names = [f'{number}.png' for number in range(count + 1)]
    for name in names if kind == 'size' else names[:1]:
        image(tmp_path / 'photos' / name)
    content = json.loads(coco(tmp_path / 'a.json', *names).read_text())
    if kind == 'size':
        content['images'] = [content['images'][0], *(record | dict(width=9) for record in content['images'][1:])]
        (tmp_path / 'a.json').write_text(json.dumps(content))
    assert leave(tmp_path / 'a.json', tmp_path / 'photos', '--shown', 5, '--out', tmp_path / 'out.json') == 3
    out = capsys.readouterr().out
    (report,) = json.loads((tmp_path / 'out.json').read_text())['parts'].values()
    assert report['counts'] == {kind: count} and len(report['findings']) == count
    assert f'{kind}: {count}' in out and f'{count} finding{"s" * (count > 1)}\n' in out
    assert ('more (--shown, --out)' in out) == (count > 5) and (f'... and {count - 5} more' in out) == (count > 5)


def test_one_cause_is_one_line_with_a_hint(tmp_path, capsys):
    pixels = np.zeros((6, 8), np.uint8)
    pixels[0, :2] = 11, 1
    for number in range(40):
        (tmp_path / 'labels').mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / 'labels' / f'{number}.png')
    assert leave(tmp_path / 'labels', '--num-classes', 3) == 3
    out = capsys.readouterr().out
    assert 'label: 40' in out and '40 files, such as 0.png' in out and out.count('values {11}') == 1
    assert 'if 11 (in 40 files) is no class: --ignore 255 11' in out and '40 findings' in out
    assert leave(tmp_path / 'labels', '--num-classes', 3, '--ignore', 255, 11) == 0


def test_a_name_with_a_wrong_escape_is_an_error_of_the_whole_file(tmp_path):
    (tmp_path / 'a.json').write_text('{"images": [{"id": 1, "file_name": "a\\x.png"}], "annotations": []}')
    assert [part.images for part in parts_of(tmp_path)] == [None]


def test_a_report_in_the_folder_of_the_data_is_no_coco_file(tmp_path, capsys):
    image(tmp_path / 'photos/1.png')
    train = coco(tmp_path / 'train.json', '1.png')
    assert leave(tmp_path, '--out', tmp_path / 'report.json') == 0
    assert [part.data for part in parts_of(tmp_path)] == [train]
    assert leave(tmp_path) == 0, capsys.readouterr().out
