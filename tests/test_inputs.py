"""What words on a command line mean, and names of answers that never meet."""

from pathlib import Path

import pytest

from vitdense.errors import ConfigError
from vitdense.inputs import Input, OutputNames, find_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')


def test_files_folders_patterns_and_cameras(tmp_path):
    touch(tmp_path, 'b.jpg', 'a.PNG', 'sub/c.webp', 'sub/d.mp4', 'notes.txt', 'strange.xyz')
    found = find_inputs([str(tmp_path), '0', str(tmp_path / '*.jpg'), str(tmp_path / 'strange.xyz')])
    assert [(item.kind, item.name, str(item.relative)) for item in found] == [
        ('picture', 'a.PNG', 'a.PNG'),
        ('picture', 'b.jpg', 'b.jpg'),  # once, although the pattern names it too
        ('picture', 'c.webp', 'sub/c.webp'),
        ('video', 'd.mp4', 'sub/d.mp4'),
        ('camera', 'camera 0', '.'),
        ('picture', 'strange.xyz', 'strange.xyz'),  # the user says so
    ]


def test_a_file_whose_name_is_a_number_is_a_file(tmp_path, monkeypatch):
    touch(tmp_path, '0')
    monkeypatch.chdir(tmp_path)
    assert [item.kind for item in find_inputs(['0', '1'])] == ['picture', 'camera']


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    touch(tmp_path, 'a[1].jpg', 'a1.jpg')
    assert [item.name for item in find_inputs([str(tmp_path / 'a[1].jpg')])] == ['a[1].jpg']


@pytest.mark.parametrize('word', ['missing.jpg', 'empty', '*.jpg'])
def test_nothing_found_is_a_config_error(tmp_path, monkeypatch, word):
    touch(tmp_path, 'empty/notes.txt')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='names no picture') as caught:
        find_inputs([word])
    assert caught.value.where == word


def test_earlier_answers_are_not_looked_at_again(tmp_path):
    touch(tmp_path, 'a.jpg', 'out/a.jpg')
    assert [item.source for item in find_inputs([str(tmp_path)], outside=tmp_path / 'out')] == [tmp_path / 'a.jpg']
    for word in (tmp_path / 'out', tmp_path / 'out' / '*.jpg'):  # unless one asks for them
        assert len(find_inputs([str(word)], outside=tmp_path / 'out')) == 1


def named(folder: Path, inputs: list[Input]) -> list[str]:
    naming = OutputNames(folder / 'out', inputs)
    return [str(naming.name(item, '.jpg').relative_to(folder / 'out')) for item in inputs]


def test_answers_keep_the_folders_below_the_one_that_was_named(tmp_path):
    touch(tmp_path, 'in/x.jpg', 'in/deep/x.jpg', 'far/away/y.mp4')
    inputs = find_inputs([str(tmp_path / 'in'), str(tmp_path / 'far/away/y.mp4')])
    assert named(tmp_path, inputs) == ['deep/x.jpg', 'x.jpg', 'y.jpg']


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    names = ['a/x.jpg', 'b/x.jpg', 'b/x.png', 'b/X.webp']
    touch(tmp_path, *names)
    inputs = find_inputs([str(tmp_path / name) for name in names])
    assert named(tmp_path, inputs) == ['a/x.jpg', 'b/x.jpg', 'x.jpg', 'X_webp.jpg']
    naming = OutputNames(tmp_path / 'out', inputs)
    assert naming.name(inputs[0], '.png', tag='_sem') == tmp_path / 'out/a/x_sem.png'


def test_answers_never_hit_an_input(tmp_path):
    touch(tmp_path, 'x.jpg', 'x_jpg.jpg', 'x_overlay.jpg')
    inputs = find_inputs([str(tmp_path)])
    naming = OutputNames(tmp_path, inputs)
    paths = {naming.name(item, '.jpg') for item in inputs}
    assert len(paths) == 3 and not paths & {item.source for item in inputs}


def test_cameras_have_names_too(tmp_path):
    item = Input('camera', 0)
    assert OutputNames(tmp_path, [item]).name(item, '.mp4') == tmp_path / 'camera0.mp4'
