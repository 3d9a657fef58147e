"""Look at many inputs: pictures with a reader ahead and a writer behind, videos frame by frame; keep a record."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import Tensor

from vitdense.errors import DataError, DiskError
from vitdense.inference import Predictor, Result, as_tensor, write_picture
from vitdense.inputs import Input, OutputNames
from vitdense.types import SemanticMap
from vitdense.video import Frame, VideoReader, VideoWriter

logger = logging.getLogger('vitdense')

AHEAD = 4  # pictures that are read before, and written after, the one the model sees
LARGE = 40_000_000  # pixels; a model that looks at such a picture as a whole needs very much memory


class Options(NamedTuple):
    """What to do with the answers."""

    alpha: float = 0.5  # opacity of regions
    legend: bool = True
    min_score: float = 0.3  # objects below it are neither drawn nor counted
    labels: bool = False  # also write label maps as PNG
    batch: int = 1  # pictures or frames that go through the network together
    save_video: bool = True
    video_format: str = '.mp4'
    fps: float | None = None  # of the written video; None: that of the source
    max_frames: int | None = None
    show: bool = False  # in a window


class Demo:
    """Runs `predictor` on inputs and keeps what came out.

    `entries` has one dict for each input that worked and `skipped` one for each that did not, as `results.json` shows
    them; `stages` adds up the seconds of each stage over `count` pictures and frames, `parts` those of the backbone and
    of each head within them, and `seconds` is the time that passed. Loading, drawing and writing run in threads beside
    the network.
    """

    def __init__(self, predictor: Predictor, names: OutputNames, options: Options | None = None) -> None:
        self.predictor = predictor
        self.names = names
        self.options = options or Options()
        self.entries: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.stages: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.count = 0
        self.seconds = 0.0
        self._only = False  # there is one input, and it must work
        self._stopped = False  # the user closed the window

    def look(self, inputs: Sequence[Input], *, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Look at all `inputs`. `tell(done, total)` is called as work goes on; total 0: nobody knows.

        An input that cannot be read is skipped with one warning. Raises its DataError when it is the only one, and a
        DataError when none could be read.
        """
        start = time.perf_counter()
        self._only = len(inputs) == 1
        pictures = [item for item in inputs if item.kind == 'picture']
        try:
            self._pictures(pictures, tell)
            for item in inputs:
                if item.kind != 'picture':
                    self._guarded(item, lambda item=item: self._video(item, tell))
        finally:
            self.seconds += time.perf_counter() - start
        if not self.entries and not self._stopped:
            raise DataError(
                f'none of {len(inputs)} inputs could be read',
                where=', '.join(entry['file'] for entry in self.skipped[:5]),
                why='; '.join(entry['reason'] for entry in self.skipped[:5]),
                fix='give pictures or videos that can be opened',
            )

    def save(self, path: Path) -> None:
        """Write everything that is known to a json file. Raises DiskError."""
        content = {
            'results': self.entries,
            'skipped': self.skipped,
            'count': self.count,
            'seconds': round(self.seconds, 3),
            'stages_seconds': {stage: round(seconds, 4) for stage, seconds in self.stages.items()},
            'parts_seconds': {part: round(seconds, 4) for part, seconds in self.parts.items()},
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding='utf-8')
        except OSError as error:
            raise DiskError(
                f'cannot write {path.name}', where=str(path), why=str(error), fix='choose another folder with --out'
            ) from error

    def _guarded(self, item: Input, work: Callable[[], Any]) -> Any:
        """Return `work()`; of an unreadable input None, after a warning."""
        if self._stopped:
            return None
        try:
            return work()
        except DataError as error:
            if self._only:
                raise
            self.skipped.append({'file': str(item.source), 'reason': error.message})
            logger.warning('skipped %s', error.message)
            return None

    # ------------------------------------------------------------------------------------------------ pictures

    def _pictures(self, items: Sequence[Input], tell: Callable[[int, int], None]) -> None:
        pending: deque[Future] = deque()
        with ThreadPoolExecutor(1, 'read') as reading, ThreadPoolExecutor(1, 'write') as writing:
            loaded = self._loaded(_ahead(items, partial(reading.submit, self._load), AHEAD + self.options.batch))
            for group in _groups(loaded, self.options.batch):
                results = self.predictor([img for _, img, _ in group])
                for (item, _, seconds), result in zip(group, results, strict=True):
                    result = replace(result, path=str(item.source), times={**result.times, 'load': seconds})
                    pending.append(writing.submit(self._write_picture, item, result))
                while len(pending) > AHEAD:
                    self._note_picture(*pending.popleft().result())
                    tell(self.count + len(self.skipped), len(items))
            while pending:
                self._note_picture(*pending.popleft().result())
                tell(self.count + len(self.skipped), len(items))

    def _loaded(self, futures: Iterable[tuple[Input, Future]]) -> Iterator[tuple[Input, Tensor, float]]:
        for item, future in futures:
            loaded = self._guarded(item, future.result)
            if loaded is not None:
                yield (item, *loaded)

    def _load(self, item: Input) -> tuple[Tensor, float]:
        start = time.perf_counter()
        img = as_tensor(item.source, max_pixels=self.predictor.max_pixels)
        if img.shape[-2] * img.shape[-1] > LARGE and self.predictor.model.tiler is None:
            logger.warning(
                '%s has %.0f Mpx and the model looks at it as a whole; --tile SIZE looks at it in windows',
                item.name,
                img.shape[-2] * img.shape[-1] / 1e6,
            )
        return img, time.perf_counter() - start

    def _write_picture(self, item: Input, result: Result) -> tuple[dict[str, Any], np.ndarray]:
        start = time.perf_counter()
        picture = self._draw(result)
        drawn = time.perf_counter()
        suffix = '.jpg' if item.source.suffix.lower() in ('.jpg', '.jpeg') else '.png'
        path = write_picture(picture, self.names.name(item, suffix))
        labels = self._write_labels(item, result) if self.options.labels else {}
        times = {**result.times, 'draw': drawn - start, 'write': time.perf_counter() - drawn}
        entry = {
            'file': str(item.source),
            'kind': 'picture',
            'output': str(path),
            **({'labels': labels} if labels else {}),
            'size': list(result.image.shape[:2]),
            'heads': self._numbers(result),
            **self._objects(result),
            'ms': {stage: round(1000 * seconds, 2) for stage, seconds in times.items()},
            'ms_parts': {part: round(1000 * seconds, 2) for part, seconds in result.parts.items()},
        }
        return entry, picture

    def _write_labels(self, item: Input, result: Result) -> dict[str, str]:
        """Write the label map of every semantic head as PNG (8 bits, 16 above 255 classes); return the paths."""
        paths = {}
        for head, prediction in result.predictions.items():
            if isinstance(prediction, SemanticMap):
                labels = prediction.labels.numpy()
                labels = labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
                paths[head] = str(write_picture(labels, self.names.name(item, '.png', tag=f'_{head}')))
        return paths

    def _note_picture(self, entry: dict[str, Any], picture: np.ndarray) -> None:
        self.entries.append(entry)
        self.count += 1
        self.stages.update({stage: value / 1000 for stage, value in entry['ms'].items()})
        self.parts.update({part: value / 1000 for part, value in entry['ms_parts'].items()})
        if self.options.show:
            self._show(picture, entry['file'], wait=0)

    # -------------------------------------------------------------------------------------------------- videos

    def _video(self, item: Input, tell: Callable[[int, int], None]) -> None:
        frames: list[dict[str, Any]] = []
        interrupted = False
        start = time.perf_counter()
        with VideoReader(item.source) as reader, contextlib.ExitStack() as stack:
            writer = None
            try:
                for frame, result in self._answers(reader):
                    seconds = {'seconds': round(frame.seconds, 6)}
                    frames.append(seconds | self._numbers(result) | self._objects(result))
                    if self.options.save_video and writer is None:
                        writer = stack.enter_context(self._writer(item, reader, result))
                    if writer is not None:
                        writer.write(partial(self._draw_timed, result))
                    if self.options.show:
                        self._show(self._draw(result), item.name, wait=1)
                    tell(len(frames), reader.announced if len(frames) <= reader.announced else 0)
                    if self._stopped:
                        break
            except KeyboardInterrupt:
                interrupted = True  # what was seen so far is finished and kept
        path = writer.path if writer is not None else None
        self._note_video(item, reader, frames, path, time.perf_counter() - start)
        if interrupted and not reader.is_camera:
            raise KeyboardInterrupt  # of a camera it is the way to stop

    def _answers(self, reader: VideoReader) -> Iterator[tuple[Frame, Result]]:
        batch = 1 if reader.is_camera else self.options.batch
        for group in _groups(self._timed(itertools.islice(reader, self.options.max_frames)), batch):
            results = self.predictor([frame.image for frame in group])
            for result in results:
                self.stages.update({stage: seconds for stage, seconds in result.times.items() if stage != 'load'})
                self.parts.update(result.parts)
            yield from zip(group, results, strict=True)

    def _writer(self, item: Input, reader: VideoReader, first: Result) -> VideoWriter:
        path = self.names.name(item, self.options.video_format)
        return VideoWriter(path, self._draw(first).shape[:2], self.options.fps or reader.fps)

    def _timed(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Pass frames on and count the time spent waiting for them as loading."""
        frames = iter(frames)
        while True:
            start = time.perf_counter()
            frame = next(frames, None)
            self.stages['load'] += time.perf_counter() - start
            if frame is None:
                return
            yield frame

    def _draw_timed(self, result: Result) -> np.ndarray:
        start = time.perf_counter()
        picture = self._draw(result)
        self.stages['draw'] += time.perf_counter() - start
        return picture

    def _note_video(
        self, item: Input, reader: VideoReader, frames: list[dict[str, Any]], path: Path | None, seconds: float
    ) -> None:
        self.count += len(frames)
        entry = {
            'file': str(item.source),
            'kind': item.kind,
            'output': None if path is None else str(path),
            'size': list(reader.size),
            'fps': reader.fps,
            'announced': reader.announced,
            'read': len(frames),
            'undecodable': reader.skipped,
            'heads': _mean(frames),
            'ms': {'all': round(1000 * seconds / max(1, len(frames)), 2)},
            'frames': frames,
        }
        self.entries.append(entry)
        if reader.announced != len(frames) and self.options.max_frames is None and not reader.is_camera:
            logger.warning('%s: %s', reader.name, reader.report())

    def _numbers(self, result: Result) -> dict[str, dict[str, float]]:
        return _rounded(result.summary(min_score=self.options.min_score))

    def _objects(self, result: Result) -> dict[str, dict[str, list]]:
        """Return `{'objects': {head: every object}}`, and nothing for a model that finds none by kind."""
        found = result.objects(min_score=self.options.min_score)
        rounded = {head: [_rounded_object(each) for each in objects] for head, objects in found.items()}
        return {'objects': rounded} if rounded else {}

    # ------------------------------------------------------------------------------------------------- drawing

    def _draw(self, result: Result) -> np.ndarray:
        return result.draw(alpha=self.options.alpha, legend=self.options.legend, min_score=self.options.min_score)

    def _show(self, picture: np.ndarray, title: str, *, wait: int) -> None:
        """Show a picture in the window; q and Escape end the demo, any other key goes on."""
        cv2.imshow('vitdense', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        cv2.setWindowTitle('vitdense', title)
        if cv2.waitKey(wait) & 0xFF in (ord('q'), 27):
            self._stopped = True


def _ahead(items: Iterable[Input], submit: Callable[[Input], Future], count: int) -> Iterator[tuple[Input, Future]]:
    """Yield `(item, future)` in order, with `count` items submitted ahead of the one that is waited for."""
    pending: deque[tuple[Input, Future]] = deque()
    for item in items:
        pending.append((item, submit(item)))
        if len(pending) > count:
            yield pending.popleft()
    yield from pending


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def _rounded(summary: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    rounded = {head: {name: round(value, 4) for name, value in numbers.items()} for head, numbers in summary.items()}
    return {head: {name: value for name, value in numbers.items() if value} for head, numbers in rounded.items()}


def _rounded_object(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, 'score': round(found['score'], 4), 'box': [round(side, 1) for side in found['box']]}


def _mean(frames: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean over frames of `{head: {name: number}}`, largest first."""
    sums: dict[str, Counter[str]] = {}
    for frame in frames:
        for head, numbers in frame.items():
            if head not in ('seconds', 'objects'):
                sums.setdefault(head, Counter()).update(numbers)
    return _rounded(
        {head: {name: value / len(frames) for name, value in total.most_common()} for head, total in sums.items()}
    )
