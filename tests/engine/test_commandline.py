"""Tools say what is wrong in one block, and leave with the exit code of the error."""

import pytest

from vitdense.engine.commandline import Parser, opencv_error, run
from vitdense.errors import DataError


def leave(main, argv=()) -> int:
    with pytest.raises(SystemExit) as caught:
        run(main, argv)
    return caught.value.code


def test_exit_codes(capsys):
    def broken(argv):
        raise DataError('bad picture', where='a.png', why='it is cut off', fix='copy it again')

    def interrupted(argv):
        raise KeyboardInterrupt

    assert leave(lambda argv: None) == 0
    assert leave(lambda argv: 5) == 5
    assert leave(interrupted) == 130
    assert leave(broken) == 3
    error = capsys.readouterr().err
    assert error.endswith('error[data]: bad picture\n  where: a.png\n  why:   it is cut off\n  fix:   copy it again\n')
    assert 'Traceback' not in error


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv('VITDENSE_DEBUG', '1')

    def broken(argv):
        raise DataError('bad picture', fix='copy it again')

    assert leave(broken) == 3
    assert 'Traceback' in capsys.readouterr().err


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
