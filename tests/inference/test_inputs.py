"""What words on a command line mean, and names of outputs that are unique."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.errors import ConfigError
from vitdense.inference.inputs import Input, OutputNames, find_inputs
from vitdense.video.writer import VideoWriter


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')


def test_files_folders_patterns_and_cameras(tmp_path):
    touch(tmp_path, 'b.jpg', 'a.PNG', 'sub/c.webp', 'sub/d.mp4', 'notes.txt', 'strange.xyz')
    actual = find_inputs([str(tmp_path), '0', str(tmp_path / '*.jpg'), str(tmp_path / 'strange.xyz')])
    assert [(item.kind, item.name, str(item.relative)) for item in actual] == [
        ('image', 'a.PNG', 'a.PNG'),
        ('image', 'b.jpg', 'b.jpg'),  # once, although the pattern names it too
        ('image', 'c.webp', 'sub/c.webp'),
        ('video', 'd.mp4', 'sub/d.mp4'),
        ('camera', 'camera 0', '.'),
        ('image', 'strange.xyz', 'strange.xyz'),  # the user says so
    ]


def save(folder: Path, *names: str) -> None:
    """Write real images and videos, in the format of their suffix, `NAME>OTHER` under another name."""
    for words in names:
        name, _, other = words.partition('>')
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in ('.mp4', '.avi', '.webm'):
            with VideoWriter(path, (48, 64), 5) as writer:
                writer.write(np.zeros((48, 64, 3), np.uint8))
        else:
            Image.new('RGB', (8, 6)).save(path)
        if other:
            path.rename(folder / other)


def test_other_suffixes_are_recognised_by_content_and_other_files_counted(tmp_path, caplog):
    caplog.set_level('INFO', 'vitdense')
    save(tmp_path, 'a.jpg>a.jfif', 'b.mp4>b.3gp', 'c.webm>c.bin', 'd.avi>d', 'e.png>e')
    touch(tmp_path, 'notes.txt', 'sub/empty.dat')
    (tmp_path / 'broken.jpg').symlink_to(tmp_path / 'gone.jpg')
    os.mkfifo(tmp_path / 'pipe.mp4')
    kinds = {item.name: item.kind for item in find_inputs([str(tmp_path)])}
    assert kinds == {'a.jfif': 'image', 'b.3gp': 'video', 'c.bin': 'video', 'd': 'video', 'e': 'image'}
    assert 'left out, neither image nor video: 4 files, broken.jpg, notes.txt, pipe.mp4, ' in caplog.text


def test_the_content_of_a_named_file_counts_more_than_its_suffix(tmp_path):
    save(tmp_path, 'a.mp4>a.jpg', 'b.png>b.mp4')
    named = find_inputs([str(tmp_path / 'a.jpg'), str(tmp_path / 'b.mp4')])
    assert [item.kind for item in named] == ['video', 'image']


def test_an_image_of_a_folder_with_the_suffix_of_a_video_is_an_image(tmp_path):
    save(tmp_path, 'a.png>a.mp4', 'b.avi')
    assert {item.name: item.kind for item in find_inputs([str(tmp_path)])} == {'a.mp4': 'image', 'b.avi': 'video'}


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path, 'in/a.png', 'far/b.png')
    (tmp_path / 'in/loop').symlink_to(tmp_path / 'in')
    (tmp_path / 'in/far').symlink_to(tmp_path / 'far')
    assert [item.name for item in find_inputs([str(tmp_path / 'in')])] == ['a.png', 'b.png']


@pytest.mark.faults
def test_a_word_that_names_nothing_does_not_end_the_others(tmp_path):
    save(tmp_path, 'a.png')
    os.mkfifo(tmp_path / 'pipe.png')
    words = [str(tmp_path / name) for name in ('missing.jpg', 'a.png', 'pipe.png')]
    missing, image, pipe = find_inputs([*words])
    assert (missing.kind, image.kind, pipe.kind) == ('unusable', 'image', 'unusable')
    assert 'no such file' in missing.error.why and 'no regular file' in pipe.error.why
    with pytest.raises(ConfigError, match='names no image'):
        find_inputs([words[2]])


def test_a_file_whose_name_is_a_number_is_a_file(tmp_path, monkeypatch):
    touch(tmp_path, '0')
    monkeypatch.chdir(tmp_path)
    assert [item.kind for item in find_inputs(['0', '1'])] == ['image', 'camera']


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    touch(tmp_path, 'a[1].jpg', 'a1.jpg')
    assert [item.name for item in find_inputs([str(tmp_path / 'a[1].jpg')])] == ['a[1].jpg']


@pytest.mark.parametrize('word', ['missing.jpg', 'empty', '*.jpg'])
def test_nothing_found_is_a_config_error(tmp_path, monkeypatch, word):
    touch(tmp_path, 'empty/notes.txt')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='names no image') as caught:
        find_inputs([word])
    assert caught.value.where == word


def test_earlier_outputs_are_no_inputs(tmp_path):
    touch(tmp_path, 'a.jpg', 'out/a.jpg')
    assert [item.source for item in find_inputs([str(tmp_path)], outside=tmp_path / 'out')] == [tmp_path / 'a.jpg']
    for word in (tmp_path / 'out', tmp_path / 'out' / '*.jpg'):  # unless one asks for them
        assert len(find_inputs([str(word)], outside=tmp_path / 'out')) == 1


def named(folder: Path, inputs: list[Input]) -> list[str]:
    naming = OutputNames(folder / 'out', inputs)
    return [str(naming.name(item, '.jpg').relative_to(folder / 'out')) for item in inputs]


def test_outputs_keep_the_folders_below_the_named_one(tmp_path):
    touch(tmp_path, 'in/x.jpg', 'in/deep/x.jpg', 'far/away/y.mp4')
    inputs = find_inputs([str(tmp_path / 'in'), str(tmp_path / 'far/away/y.mp4')])
    assert named(tmp_path, inputs) == ['deep/x.jpg', 'x.jpg', 'y.jpg']


def test_files_of_one_name_differ_by_their_folders(tmp_path):
    names = ['a/x.jpg', 'b/x.jpg', 'b/x.png', 'b/X.webp']
    touch(tmp_path, *names)
    inputs = find_inputs([str(tmp_path / name) for name in names])
    assert named(tmp_path, inputs) == ['a/x.jpg', 'b/x.jpg', 'x.jpg', 'X_webp.jpg']
    naming = OutputNames(tmp_path / 'out', inputs)
    assert naming.name(inputs[0], '.png', tag='_sem') == tmp_path / 'out/a/x_sem.png'


def test_outputs_never_overwrite_an_input(tmp_path):
    touch(tmp_path, 'x.jpg', 'x_jpg.jpg', 'x_overlay.jpg')
    inputs = find_inputs([str(tmp_path)])
    naming = OutputNames(tmp_path, inputs)
    paths = {naming.name(item, '.jpg') for item in inputs}
    assert len(paths) == 3 and not paths & {item.source for item in inputs}


def test_a_file_and_a_folder_for_outputs_have_different_names(tmp_path):
    touch(tmp_path, 'in/a.bmp', 'in/a.jpg/b.bmp')
    assert named(tmp_path, find_inputs([str(tmp_path / 'in')])) == ['a_bmp.jpg', 'a.jpg/b.jpg']


def test_cameras_have_names_too(tmp_path):
    item = Input('camera', 0)
    assert OutputNames(tmp_path, [item]).name(item, '.mp4') == tmp_path / 'camera0.mp4'
