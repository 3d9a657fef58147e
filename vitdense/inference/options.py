"""Checks of the options of `vitdense.load` and `Predictor`."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vitdense.errors import ConfigError, did_you_mean

AMP = ('auto', 'bf16', 'fp16', 'off')
_SCORE = 'objects of low score are left out when a result is read: result.objects(min_score=...), result.draw(...)'
_SIZE = "images are resized as the model's evaluation transforms say; tile=... predicts large ones in windows"
_AMP = "the precision is amp='auto', 'bf16', 'fp16' or 'off'"
_ELSEWHERE = {  # names of other tools for what is done in another way here
    **dict.fromkeys(('conf', 'confidence', 'conf_thres', 'threshold', 'score_thr', 'min_score'), _SCORE),
    **dict.fromkeys(('imgsz', 'img_size', 'image_size', 'size', 'resolution'), _SIZE),
    **dict.fromkeys(('half', 'fp16', 'dtype', 'precision'), _AMP),
    'batch': 'images that go through the network together are batch_size=...',
}


def refuse_unknown(options: Mapping[str, Any], known: Iterable[str], *, where: str) -> None:
    """Raise ConfigError for an option that is not `known`."""
    known = list(known)
    for name in options:
        if name not in known:
            hint = _ELSEWHERE.get(name)
            raise ConfigError(
                f"there is no option '{name}'" + ('' if hint else did_you_mean(name, known)),
                where=where,
                why=f'options are {", ".join(known)}',
                fix=hint or 'correct or leave out the option',
            )


def folder_name(path: Any) -> Path:
    """Return the path of a folder. Raises ConfigError for anything else."""
    if isinstance(path, str | os.PathLike) and not isinstance(os.fspath(path), bytes) and str(path):
        return Path(path)
    raise _wrong('model_dir', path, 'the path of a model folder, or of the folder of a run')


def whole_number(value: Any, name: str) -> int:
    """Return a whole number above 0. Raises ConfigError for anything else."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise _wrong(name, value, 'a whole number above 0')
    return number


def precision(amp: Any) -> str:
    """Return `amp` if it names a precision. Raises ConfigError."""
    if amp not in AMP:
        raise _wrong('amp', amp, f'one of {", ".join(AMP)}')
    return amp


def device_name(device: Any) -> str | torch.device | None:
    """Return a device in a form that torch reads; a number is that of a GPU. Raises ConfigError for other types."""
    if device is None or isinstance(device, str | torch.device):
        return device
    if isinstance(device, int) and not isinstance(device, bool):
        return f'cuda:{device}'
    raise _wrong('device', device, "'cpu', 'cuda', 'cuda:1', a torch.device or the number of a GPU")


def _wrong(name: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(
        f'{name}={value!r} is not allowed',
        where=name,
        why=f'it is {allowed}',
        fix=f'give {name} such a value, or leave it out',
    )
