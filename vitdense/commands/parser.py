"""The argument parser of all command-line tools: shared options, suggestions for misspelt ones, exit codes of errors.

Nothing heavy is imported here, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vitdense.config.option_names import suggestion
from vitdense.errors import ConfigError, ResourceError, VitDenseError
from vitdense.storage.trust import trust_checkpoints

INTERRUPTED = 130  # exit code after Ctrl-C, by the convention of shells


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit with what it returns (None: 0), or with the exit code of its error.

    A VitDenseError becomes its block on stderr; with VITDENSE_DEBUG=1 the traceback is shown as well. Other errors are
    bugs and keep their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that a terminal cannot show are escaped
            stream.reconfigure(errors='backslashreplace')
    try:
        code = main(argv) or 0
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        code = 0
    except (VitDenseError, ImportError) as error:
        code = _explain(error)
    try:
        sys.stdout.flush()
    except OSError:  # the pipe is closed, or the disk is full: drop the rest, so that Python does not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def count(text: str) -> int:
    """Return the whole number from 0 on that an argument is, for `type=` of argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0 on')
    return int(text)


def seconds(text: str) -> float:
    """Return the time that an argument is, in seconds: 90, 1:30 or 1:02:03, for `type=` of argparse."""
    match = re.fullmatch(r'(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is no time, such as 90, 1:30 or 1:02:03')
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3])


def duration(time: str | float) -> float:
    """Return a time in seconds: a number of them, or words such as '90s', '30m', '1.5h'. Raises ConfigError."""
    if isinstance(time, int | float) and not isinstance(time, bool) and time > 0:
        return float(time)
    match = re.fullmatch(r'(\d+(?:\.\d+)?)(s|m|h)', str(time))
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f'{time!r} is no time',
            where='--time',
            why='it is a number with a unit: s, m or h',
            fix='write for example --time 30m, or --time 2h',
        )
    return float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]]


def rate(text: str) -> float:
    """Return the finite number above 0 that an argument is, for `type=` of argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def positive(text: str) -> int:
    """Return the whole number above 0 that an argument is, for `type=` of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def label_pair(text: str) -> tuple[int, int]:
    """Return the number and the class of an argument `NUMBER:CLASS`, for `type=` of argparse."""
    number, _, index = text.partition(':')
    if not (number.isdecimal() and index.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is not NUMBER:CLASS, such as 255:1')
    return int(number), int(index)


# Options that several tools have: the arguments of `add_argument`
SHARED: dict[str, dict[str, Any]] = {
    'config': dict(metavar='CONFIG', help='a config file, or configs/... of the installed package'),
    '--cfg-options': dict(nargs='+', action='extend', metavar='K=V', help='change values of the config'),
    '--device': dict(metavar='D', help='cpu, cuda, cuda:1 (default: the first GPU, else cpu)'),
    '--amp': dict(choices=('bf16', 'fp16', 'off'), help='precision (default: bf16 where it is found to be faster)'),
    '--compile': dict(action='store_true', help='compile the network with torch.compile'),
    '--workers': dict(type=count, metavar='N', help='processes that load data, for every loader'),
    '--model': dict(metavar='DIR', help='a model folder, as training leaves one, or a name of `vitdense models`'),
    '--accept-licence': dict(action='store_true', help='accept the licence of published weights that has conditions'),
    '--trust-checkpoint': dict(
        action='store_true',
        help='read weight files and exported programs that run code when they are read: only for files of your own',
    ),
    '--safe': dict(action='store_true', help='read data-only configs (.json, .yaml) only, which cannot run code'),
    '--num-classes': dict(type=positive, metavar='K', help='the number of classes, where there are no names'),
    '--reduce-zero-label': dict(action='store_true', help='label maps: 0 is no class, 1 ... K are'),
    '--skip-bad-eval': dict(
        action='store_true', help='leave out images that cannot be read, counted beside the score (else: an error)'
    ),
    '--value-range': dict(
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='black and white of images above 8 bits: 0 4095 for 12',
    ),
}


def _explain(error: VitDenseError | ImportError) -> int:
    """Print the block of an error and return its exit code. An ImportError that is not about OpenCV goes on."""
    if os.environ.get('VITDENSE_DEBUG') == '1':
        import traceback

        traceback.print_exc()
    if isinstance(error, ImportError):
        error = opencv_error(error)
    print(error, file=sys.stderr)
    return error.exit_code


def opencv_error(error: ImportError) -> ResourceError:
    """Return what to do when OpenCV cannot be imported; any other ImportError is raised again."""
    libraries = ('libGL', 'libxcb', 'libgthread', 'libglib')
    if error.name != 'cv2' and not any(library in str(error) for library in libraries):
        raise error
    return ResourceError(
        'OpenCV cannot be imported',
        where='import cv2',
        why=str(error),
        fix='apt-get install libgl1 libglib2.0-0 libxcb1; or, where you may not install system packages,\n'
        'pip uninstall -y opencv-python && pip install opencv-python-headless',
    )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigError with the nearest option, and which takes no abbreviations."""

    def __init__(self, **options: object) -> None:
        options.setdefault('formatter_class', argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        installed = os.path.basename(sys.argv[0]) in ('vitdense', 'vitdense.exe')
        if installed and ' ' not in self.prog:  # its parts have a name with spaces
            self.prog = f'vitdense {self.prog.removesuffix(".py").replace("_", "-")}'

    def add_shared(self, *names: str, **changes: Any) -> None:
        """Add options of `SHARED`; `changes` replace arguments of theirs, such as `help`."""
        for name in names:
            self.add_argument(name, **SHARED[name] | changes)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Return the parsed arguments. Raises ConfigError for wrong ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for parser in self._all() for action in parser._actions for name in action.option_strings]
            word = next((word for word in unknown if word.startswith('-')), unknown[0]).split('=')[0]
            self.error(f'unknown argument {word}{suggestion(word, known) if word.startswith("-") else ""}')
        trust_checkpoints(vars(parsed).get('trust_checkpoint', False))
        return parsed

    def _all(self) -> list[argparse.ArgumentParser]:
        """Return this parser and those of its commands."""
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [self, *(parser for group in groups for parser in group.choices.values())]

    def _words(self) -> list[str]:
        """Return what a call has to hold, for the line of an error: not the options, which may be many."""
        formatter = self._get_formatter()
        needed = [action for action in self._actions if action.required and action.option_strings]
        words = [f'{action.option_strings[-1]} {action.metavar or action.dest.upper()}' for action in needed]
        positionals = [action for action in self._actions if not action.option_strings]
        return ['[options]', *words, *(formatter._format_args(action, action.dest) for action in positionals)]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            message,
            where=self.prog,
            why=f'usage: {self.prog} {" ".join(self._words())}',
            fix=f'see {self.prog} --help for what can be given',
        )
