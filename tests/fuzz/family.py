"""Kinds of input: how one is written and mutated, and which commands read it."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from vitdense.errors import DataError, VitDenseError

MARKER = 'executed'


class Family:
    """Inputs of one kind in `folder`.

    `prepare` writes whole inputs and reads them once; `run` mutates one of them and reads that. Everything is written
    below `folder`; only code inside of an input writes the file `marker` there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / MARKER
        self.prepare()

    def warm(self, *arguments: Any, **options: Any) -> None:
        """Read an input that some of the readers refuse: no masks in it, or colours in place of labels."""
        with suppress(DataError):
            self.read(*arguments, **options)

    def prepare(self) -> None:
        raise NotImplementedError

    def run(self, random: Random) -> None:
        raise NotImplementedError


def attempt(*functions: Callable[[], Any]) -> None:
    """Call all functions; the first error that is not one of ours is raised, else the first of ours."""
    refusals = []
    for function in functions:
        try:
            function()
        except VitDenseError as error:
            str(error)
            refusals.append(error)
    if refusals:
        raise refusals[0]


def pixels(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
