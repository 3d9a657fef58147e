"""The files between `train` and the first step: those that the config is passed to, and those of the call stack."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.config.run_config import RunConfig
from vitdense.train.trainer import TrainingLoop

PACKAGE = str(Path(sys.modules[RunConfig.__module__].__file__).parents[1])
MAX_FILES = 12  # tools/train.py is one of them


class FirstStepError(Exception):
    pass


def test_few_files_lie_between_the_tool_and_the_first_step(config_file, tmp_path, monkeypatch):
    passed_to: set[str] = set()
    stack: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == 'call' and frame.f_code.co_filename.startswith(PACKAGE):
            code = frame.f_code
            arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(name), RunConfig) for name in arguments):
                passed_to.add(code.co_filename)

    def first_step(self: TrainingLoop, batch: Any) -> None:
        frame = sys._getframe()
        while frame is not None:
            stack.append(frame.f_code.co_filename)
            frame = frame.f_back
        raise FirstStepError

    monkeypatch.setattr(TrainingLoop, '_forward', first_step)
    cfg = load_config(config_file)
    sys.setprofile(profile)
    try:
        with pytest.raises(FirstStepError):
            train(cfg, work_dir=tmp_path / 'run', device='cpu')
    finally:
        sys.setprofile(None)
    assert len(passed_to) + 1 <= MAX_FILES, sorted(passed_to)
    assert len({file for file in stack if file.startswith(PACKAGE)}) <= 3
