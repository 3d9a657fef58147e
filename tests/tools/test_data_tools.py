"""evaluate and check-data as a user runs them: what is printed, what is written, and the exit code."""

import json

import pytest

from tools import check_data, evaluate
from vitdense.commands import parser as commandline

BOXES = [[10, 10, 30, 20], [40, 30, 20, 25]]


@pytest.fixture
def files(tmp_path):
    images = [dict(id=1, file_name='1.png', width=80, height=60)]
    actual = [dict(image_id=1, category_id=5, bbox=box) for box in BOXES]
    annotations = [
        record | dict(id=number, area=record['bbox'][2] * record['bbox'][3], iscrowd=0)
        for number, record in enumerate(actual, 1)
    ]
    content = dict(images=images, annotations=annotations, categories=[dict(id=5, name='cat'), dict(id=8, name='dog')])
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    (tmp_path / 'found.json').write_text(json.dumps([record | dict(score=0.5) for record in actual]))
    return tmp_path


def leave(main, *words):
    """Return the exit code of a tool that is run in this process."""
    with pytest.raises(SystemExit) as left:
        commandline.run(main, [str(word) for word in words])
    return left.value.code


def test_evaluate_prints_the_table_and_writes_the_numbers(files, capsys):
    assert (
        leave(evaluate.main, 'coco', files / 'annotations.json', files / 'found.json', '--work-dir', files / 'out') == 0
    )
    out = capsys.readouterr().out
    assert 'det: AP 1.0000' in out and 'APl n/a' in out and 'cat' in out and 'Accumulating' not in out
    metrics = json.loads((files / 'out/metrics.json').read_text())
    assert metrics['det/AP'] == pytest.approx(1) and metrics['det/APl'] is None


def test_exit_codes_of_errors(files, capsys):
    rows = json.loads((files / 'found.json').read_text())
    (files / 'nan.json').write_text(json.dumps([row | dict(score=float('nan')) for row in rows]))
    (files / 'strange.json').write_text(json.dumps([row | dict(category_id=7) for row in rows]))
    words = ('coco', files / 'annotations.json')
    assert leave(evaluate.main, *words, files / 'nan.json', '--work-dir', files / 'out') == 4
    assert leave(evaluate.main, *words, files / 'strange.json', '--work-dir', files / 'out') == 3
    assert leave(evaluate.main, *words) == 2
    assert leave(evaluate.main, *words, files / 'found.json', '--iou-typ', 'bbox') == 2
    assert "did you mean '--iou-type'" in capsys.readouterr().err


def test_check_data_leaves_with_three_and_writes_all_it_found(files, capsys):
    assert leave(check_data.main, files / 'annotations.json') == 0
    assert 'no errors' in capsys.readouterr().out
    content = json.loads((files / 'annotations.json').read_text())
    for number in range(10, 20):
        content['annotations'].append(content['annotations'][0] | dict(id=number, bbox=[1, 1, 0, 5]))
    (files / 'annotations.json').write_text(json.dumps(content))
    words = (files / 'annotations.json', '--shown', 3, '--out', files / 'report.json')
    assert leave(check_data.main, *words) == 3
    out = capsys.readouterr().out
    assert '10: bbox [1, 1, 0, 5] in 80 x 60' in out and '... and 7 more' in out and '10 findings' in out
    (report,) = json.loads((files / 'report.json').read_text())['parts'].values()
    assert report['counts'] == {'empty': 10} and len(report['findings']) == 10
    assert report['classes'][0] == dict(zip(report['classes'][0], ['cat', '5', '12', '100.0 %', '1', '0'], strict=True))
    assert leave(check_data.main, files / 'annotations.json', files / 'nowhere') == 3
    assert 'no folder of images' in capsys.readouterr().err
