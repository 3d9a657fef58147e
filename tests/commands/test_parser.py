"""Tools say what is wrong in one block, and leave with the exit code of the error."""

import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from vitdense.tools.cli import dispatch

from vitdense.commands.parser import Parser, opencv_error, run
from vitdense.config.load import load_config
from vitdense.config.option_names import KNOWN_AS, SIZE
from vitdense.errors import ConfigError, DataError
from vitdense.reporting.next_commands import tool_command


def leave(main, argv=()) -> int:
    with pytest.raises(SystemExit) as caught:
        run(main, argv)
    return caught.value.code


def test_exit_codes(capsys):
    def broken(argv):
        raise DataError('bad image', where='a.png', why='it is cut off', fix='copy it again')

    def interrupted(argv):
        raise KeyboardInterrupt

    assert leave(lambda argv: None) == 0
    assert leave(lambda argv: 5) == 5
    assert leave(interrupted) == 130
    assert leave(broken) == 3
    error = capsys.readouterr().err
    assert error.endswith('error[data]: bad image\n  where: a.png\n  why:   it is cut off\n  fix:   copy it again\n')
    assert 'Traceback' not in error


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv('VITDENSE_DEBUG', '1')

    def broken(argv):
        raise DataError('bad image', fix='copy it again')

    assert leave(broken) == 3
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('program', 'shown'), [('bin/vitdense', 'vitdense check-data'), ('tools/x.py', 'check_data.py')]
)
def test_an_error_names_the_command_as_it_was_given(program, shown, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [program])
    with pytest.raises(ConfigError) as caught:
        Parser(prog='check_data.py').parse_args(['--nothing'])
    assert caught.value.where == shown and caught.value.why == f'usage: {shown} [options]'


def test_a_misspelt_option_gets_the_nearest(capsys):
    def main(argv):
        parser = Parser(prog='demo.py')
        parser.add_argument('--device')
        parser.parse_args(argv)

    assert leave(main, ['--divice', 'cpu']) == 2
    assert "did you mean '--device'?" in capsys.readouterr().err
    assert leave(main, ['--dev', 'cpu']) == 2  # no abbreviations
    assert leave(main, ['--device']) == 2


def test_a_missing_opencv_is_explained_and_other_imports_are_not_hidden():
    error = opencv_error(ImportError('libGL.so.1: cannot open shared object file'))
    assert error.exit_code == 6 and 'opencv-python-headless' in error.fix
    with pytest.raises(ImportError, match='nonsense'):
        opencv_error(ImportError("No module named 'nonsense'", name='nonsense'))


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 // 0)


@pytest.mark.parametrize(
    ('tool', 'word', 'output'),
    [
        ('demo', '--conf', "did you mean '--min-score'"),
        ('demo', '--min_score', "did you mean '--min-score'"),
        ('demo', '--imgsz', ''),
        ('demo', '--source', ''),
        ('train', '--epochs', 'set by --cfg-options schedule.max_epochs=N schedule.max_iters=None'),
        ('train', '--batch-size', 'set by --cfg-options train_dataloader.batch_size=N'),
        ('train', '--lr', 'set by --cfg-options optim_wrapper.optimizer.lr=X'),
        ('train', '--imgsz', 'set by --cfg-options train_dataloader.dataset.transforms'),
        ('train', '--gpu', "did you mean '--device'"),
        ('train', '--num_workers', "did you mean '--workers'"),
        ('train', '--cfg_options', "did you mean '--cfg-options'"),
        ('train', '--qwerty', ''),
        ('test', '--checkpoint', ''),
        ('probe', '--epochs', "did you mean '--steps'"),
        ('benchmark', '--imgsz', "did you mean '--size'"),
    ],
)
def test_an_option_of_other_programs_leads_to_ours(tool, word, output):
    words = ['x', '--model', 'm', word, '1'] if tool == 'demo' else ['x', word, '1']
    with pytest.raises(ConfigError, match=f'unknown argument {word}') as caught:
        importlib.import_module(f'vitdense.tools.{tool}').main(words)
    assert caught.value.message.endswith(f'unknown argument {word}') if not output else output in caught.value.message


def test_every_name_of_ours_exists():
    """What `suggestion` leads to is an option of some tool, or a key of a config."""
    tools = Path(importlib.util.find_spec('vitdense.tools').submodule_search_locations[0])
    options = {word for tool in tools.glob('*.py') for word in re.findall(r"'(--[a-z-]+)'", tool.read_text())}
    cfg = load_config('configs/detection/finetune_small.py')
    for ours in KNOWN_AS:
        if ours.startswith('--'):
            assert ours in options
        for option in () if ours.startswith('--') or ours == SIZE else shlex.split(ours):
            holder = cfg
            for key in option.partition('=')[0].split('.'):
                holder = holder[key]


@pytest.mark.parametrize('name', ['check-data', 'check_data', 'check_data.py'])
def test_a_tool_has_its_name_however_it_is_written(name, capsys):
    with pytest.raises(SystemExit) as caught:
        dispatch([name, '--help'])
    assert caught.value.code == 0 and 'check_data.py' in capsys.readouterr().out


def test_the_command_of_another_tool_is_started_as_this_one(monkeypatch, tmp_path):
    tools = Path(importlib.util.find_spec('vitdense.tools').submodule_search_locations[0])
    monkeypatch.setattr(sys, 'argv', [str(tools / 'train.py')])
    words = shlex.split(tool_command('test', tmp_path / 'a b' / 'config.py', "it's"))
    assert words[1:] == [str(tools / 'test.py'), str(tmp_path / 'a b' / 'config.py'), "it's"]
    assert shutil.which(words[0])
    monkeypatch.setattr(sys, 'argv', [str(tmp_path / 'train.py')])  # a program of the user's
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert shlex.split(tool_command('check_data', 'x')) == [
        sys.executable,
        '-m',
        'vitdense.tools.cli',
        'check-data',
        'x',
    ]


def test_every_name_of_this_python_is_printed_as_the_one_that_a_shell_finds(monkeypatch, tmp_path):
    """pip writes `bin/python3` into the first line of the programs it installs, pytest among them."""
    folder = Path(importlib.util.find_spec('vitdense.tools').submodule_search_locations[0])
    for environment in ('ours', 'other'):
        (tmp_path / environment).mkdir()
        for name in ('python', 'python3'):
            (tmp_path / environment / name).symlink_to(sys.executable)
    monkeypatch.setenv('PATH', str(tmp_path / 'ours'))
    monkeypatch.setattr(sys, 'argv', [str(folder / 'train.py')])
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'ours' / 'python3'))
    assert tool_command('test').split()[0] == 'python'
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'other' / 'python'))
    assert tool_command('test').split()[0] == str(tmp_path / 'other' / 'python')


@pytest.mark.parametrize(
    ('name', 'meant'),
    [('predict', 'demo'), ('val', 'test'), ('tran', 'train'), ('checkdata', 'check-data'), ('xyz', '')],
)
def test_a_tool_that_does_not_exist(name, meant):
    with pytest.raises(ConfigError) as caught:
        dispatch([name])
    assert caught.value.message == f"vitdense has no tool '{name}'" + (f"; did you mean '{meant}'?" if meant else '')


@pytest.mark.parametrize(
    ('tool', 'option', 'value'),
    [
        ('train', '--workers', '-1'),
        ('train', '--workers', 'two'),
        ('train', '--seed', '1.5'),
        ('test', '--workers', '-1'),
        ('probe', '--steps', '0'),
        ('probe', '--lrs', 'nan'),
        ('probe', '--lrs', '-1'),
        ('check_data', '--workers', '0'),
        ('check_data', '--num-classes', '-1'),
        ('check_data', '--shown', '-3'),
        ('visualize_features', '--size', '-14'),
    ],
)
def test_numbers_of_a_command_line_have_limits(tool, option, value):
    with pytest.raises(ConfigError, match=f'argument {option}: .*is not a '):
        importlib.import_module(f'vitdense.tools.{tool}').main(['x', f'{option}={value}'])
