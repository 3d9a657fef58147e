"""The demo: predictions of many images, videos and cameras, with reading and writing in threads."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from vitdense.data.files.images import UnreadableImage
from vitdense.device import out_of_memory
from vitdense.errors import DataError
from vitdense.inference.demo_options import Options
from vitdense.inference.demo_records import CocoFile, classes_of, mean, precision_of, write_json
from vitdense.inference.demo_skips import InputGuard
from vitdense.inference.inputs import Input, OutputNames
from vitdense.inference.predictor import Predictor
from vitdense.inference.prefetch import ahead, groups, timed
from vitdense.inference.result import Result
from vitdense.inference.tracking import VideoTracker
from vitdense.types import SemanticMap
from vitdense.video.formats import is_video
from vitdense.video.reader import Frame, Selection, VideoReader
from vitdense.video.writer import VideoWriter
from vitdense.visualize.image_files import write_image

logger = logging.getLogger('vitdense')

AHEAD = 4  # images that are read ahead of, and written behind, the forward pass
KEPT = 100_000  # frames of a video that results.json lists, the newest
LARGE = 40_000_000  # pixels; such an image in one forward pass needs very much memory


class Demo:
    """Runs `predictor` on inputs and records the results.

    `entries` has one dict for each input that worked and `skipped` one for each that did not, as `results.json` shows
    them; `stages` sums the seconds of each stage over `count` images and frames, `parts` those of the backbone and
    of each head within them, and `seconds` is the time that passed. Loading, drawing and writing run in threads beside
    the network.
    """

    def __init__(
        self,
        predictor: Predictor,
        names: OutputNames,
        options: Options | None = None,
        *,
        on_result: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.on_result = on_result
        self.predictor = predictor
        self.names = names
        self.options = options or Options()
        self.entries: list[dict[str, Any]] = []
        self.coco = CocoFile()
        self._guard = InputGuard()
        self.skipped = self._guard.skipped
        self.stages: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.count = 0
        self.seconds = 0.0
        self._videos: list[Input] = []
        self._stopped = False  # the user closed the window

    def run(
        self, inputs: Sequence[Input], *, on_progress: Callable[[int, int, str], None] = lambda done, total, unit: None
    ) -> None:
        """Process all `inputs`. `on_progress(done, total, unit)` is called as work goes on; total 0: not known.

        An input that cannot be read, or whose output cannot be written, is skipped with one warning. Raises its error
        when it is the only one, and an error of the type of the first one when all failed.
        """
        start = time.perf_counter()
        self._guard.only = len(inputs) == 1
        images = [item for item in inputs if item.kind == 'image']
        self._videos = [item for item in inputs if item.kind in ('video', 'camera', 'stream')]
        try:
            for item in inputs:
                if item.error is not None:
                    self._guard.skip(item, item.error)
            self._images(images, on_progress)
            for item in self._videos:
                self._guarded(item, partial(self._video, item, on_progress))
        finally:
            self.seconds += time.perf_counter() - start
        if not self.entries and not self._stopped:
            self._guard.raise_all_failed(len(inputs))

    def save(self, path: Path) -> None:
        """Write all results and times to a json file, and `coco.json` beside it where asked for. Raises DiskError."""
        content = {
            'results': self.entries,
            'classes': classes_of(self.predictor.metainfo),
            'skipped': self.skipped,
            'count': self.count,
            'device': str(self.predictor.device),
            'precision': precision_of(self.predictor),
            'seconds': round(self.seconds, 3),
            'stages_seconds': {stage: round(seconds, 4) for stage, seconds in self.stages.items()},
            'parts_seconds': {part: round(seconds, 4) for part, seconds in self.parts.items()},
        }
        write_json(path, content)
        if self.options.coco:
            write_json(
                path.with_name('coco.json'),
                self.coco.content(content['classes'], {head for entry in self.entries for head in entry['objects']}),
            )

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the first input that was skipped for another reason than its content."""
        return self._guard.exit_code

    def _guarded(self, item: Input, work: Callable[[], Any]) -> Any:
        return None if self._stopped else self._guard.run(item, work)

    # ------------------------------------------------------------------------------------------------ images

    def _images(self, items: Sequence[Input], on_progress: Callable[[int, int, str], None]) -> None:
        pending: deque[tuple[Input, Future]] = deque()
        with ThreadPoolExecutor(1, 'read') as reading, ThreadPoolExecutor(1, 'write') as writing:
            loaded = self._loaded(ahead(items, partial(reading.submit, self._load), AHEAD + self.options.batch))
            for group in groups(loaded, self.options.batch):
                for (item, _, seconds), result in zip(group, self._predict(group), strict=True):
                    if result is not None:
                        result = replace(result, path=str(item.source), times={**result.times, 'load': seconds})
                        pending.append((item, writing.submit(self._write_image, item, result)))
                while len(pending) > AHEAD:
                    self._note_image(*pending.popleft())
                    on_progress(self.count + len(self.skipped), len(items), 'images')
            while pending:
                self._note_image(*pending.popleft())
                on_progress(self.count + len(self.skipped), len(items), 'images')

    def _predict(self, group: Sequence[tuple[Input, Tensor, float]]) -> list[Result | None]:
        """Return the results of images that go through the network together; None for one that is skipped.

        Where that fails, each image is tried alone.
        """
        if len(group) > 1:
            try:
                return self.predictor([img for _, img, _ in group])
            except (DataError, MemoryError, RuntimeError) as error:
                if not (isinstance(error, DataError) or out_of_memory(error)):
                    raise
        return [self._guarded(item, partial(self.predictor, img)) for item, img, _ in group]

    def _loaded(self, futures: Iterable[tuple[Input, Future]]) -> Iterator[tuple[Input, Tensor, float]]:
        for item, future in futures:
            loaded = self._guarded(item, future.result)
            if loaded is not None:
                yield (item, *loaded)

    def _load(self, item: Input) -> tuple[Tensor, float] | None:
        """Return an image and the seconds that reading took; None for a video with the suffix of an image."""
        start = time.perf_counter()
        try:
            img = self.predictor.read(item.source)
        except UnreadableImage:
            if not is_video(item.source):
                raise
            self._videos.append(item._replace(kind='video'))
            return None
        if img.shape[-2] * img.shape[-1] > LARGE and self.predictor.model.tiler is None:
            logger.warning(
                '%s has %.0f Mpx and passes the network as a whole; --tile SIZE uses windows',
                item.name,
                img.shape[-2] * img.shape[-1] / 1e6,
            )
        return img, time.perf_counter() - start

    def _write_image(self, item: Input, result: Result) -> tuple[dict[str, Any], np.ndarray, list[dict[str, Any]]]:
        start = time.perf_counter()
        image = self._draw(result)
        write_start = time.perf_counter()
        suffix = '.jpg' if item.source.suffix.lower() in ('.jpg', '.jpeg') else '.png'
        path = write_image(image, self.names.name(item, suffix))
        labels = self._write_labels(item, result) if self.options.labels else {}
        times = {**result.times, 'draw': write_start - start, 'write': time.perf_counter() - write_start}
        entry = {
            'file': str(item.source),
            'kind': 'image',
            'output': str(path),
            **({'labels': labels} if labels else {}),
            **{key: value for key, value in self._scored(result).to_dict().items() if key != 'file'},
            'ms': {stage: round(1000 * seconds, 2) for stage, seconds in times.items()},
            'ms_parts': {part: round(1000 * seconds, 2) for part, seconds in result.parts.items()},
        }
        return entry, image, result.to_coco(0) if self.options.coco else []

    def _write_labels(self, item: Input, result: Result) -> dict[str, str]:
        """Write the label map of every semantic head as PNG (8 bits, 16 above 255 classes); return the paths."""
        paths = {}
        for head, prediction in result.predictions.items():
            if isinstance(prediction, SemanticMap):
                labels = prediction.labels.numpy()
                labels = labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
                paths[head] = str(write_image(labels, self.names.name(item, '.png', tag=f'_{head}')))
        return paths

    def _note_image(self, item: Input, written: Future) -> None:
        noted = self._guarded(item, written.result)
        if noted is None:
            return
        entry, image, objects = noted
        self.entries.append(entry)
        self.on_result({key: entry[key] for key in ('file', 'size', 'heads', 'objects') if key in entry})
        self.coco.add(entry['file'], entry['size'], objects)
        self.count += 1
        self.stages.update({stage: value / 1000 for stage, value in entry['ms'].items()})
        self.parts.update({part: value / 1000 for part, value in entry['ms_parts'].items()})
        if self.options.show:
            self._show(image, entry['file'], wait=0)

    # -------------------------------------------------------------------------------------------------- videos

    def _video(self, item: Input, on_progress: Callable[[int, int, str], None]) -> None:
        frames: deque[dict[str, Any]] = deque(maxlen=KEPT)
        done, interrupted = 0, False
        start = time.perf_counter()
        with VideoReader(item.source, selection=self.options.selection) as reader, contextlib.ExitStack() as stack:
            writer, tracker = None, self._tracker(reader)
            try:
                for frame, result in self._results(reader):
                    result = result if tracker is None else tracker.update(result)
                    row = self._scored(result).to_dict() | {'file': item.file, 'seconds': round(frame.seconds, 6)}
                    row |= {} if tracker is None else {'counts': tracker.counts()}
                    frames.append(
                        row['heads'] | {key: row[key] for key in ('seconds', 'objects', 'counts') if key in row}
                    )
                    done = frame.index + 1
                    self.on_result(row)
                    if self.options.save_video and writer is None:
                        writer = stack.enter_context(self._writer(item, reader, result))
                    if writer is not None:
                        writer.write(partial(self._draw_timed, result), None if self.options.fps else frame.seconds)
                    if self.options.show:
                        self._show(self._draw(result), item.name, wait=1)
                    on_progress(done, reader.expected if done <= reader.expected else 0, f'frames of {item.name}')
                    if self._stopped:
                        break
            except KeyboardInterrupt:
                interrupted = True  # the frames so far are kept
        if not done and not interrupted:
            raise reader.no_frames()
        self._note_video(item, reader, frames, done, writer, time.perf_counter() - start)
        if interrupted and not reader.is_live:
            raise KeyboardInterrupt  # of a live source it is the way to stop

    def _tracker(self, reader: VideoReader) -> VideoTracker | None:
        if self.options.tracking is None:
            return None
        fps = reader.fps / self.options.selection.every
        return VideoTracker(self.options.tracking, fps=fps, min_score=self.options.min_score)

    def _results(self, reader: VideoReader) -> Iterator[tuple[Frame, Result]]:
        batch = 1 if reader.is_live else self.options.batch
        for group in groups(timed(itertools.islice(reader, self.options.max_frames), self._note_wait), batch):
            results = self.predictor([frame.image for frame in group])
            for result in results:
                self.stages.update({stage: seconds for stage, seconds in result.times.items() if stage != 'load'})
                self.parts.update(result.parts)
            yield from zip(group, results, strict=True)

    def _writer(self, item: Input, reader: VideoReader, first: Result) -> VideoWriter:
        path, fps = self.names.name(item, self.options.video_format), self.options.fps
        rate = fps or reader.fps / self.options.selection.every
        size = self._draw(first).shape[:2]
        return VideoWriter(path, size, rate, encoder=self.options.encoder, timed=fps is None)

    def _note_wait(self, seconds: float) -> None:
        self.stages['load'] += seconds

    def _draw_timed(self, result: Result) -> np.ndarray:
        start = time.perf_counter()
        image = self._draw(result)
        self.stages['draw'] += time.perf_counter() - start
        return image

    def _note_video(
        self,
        item: Input,
        reader: VideoReader,
        frames: Sequence[dict[str, Any]],
        done: int,
        writer: VideoWriter | None,
        seconds: float,
    ) -> None:
        self.count += done
        entry = {
            'file': item.file,
            'kind': item.kind,
            'output': None if writer is None else str(writer.path),
            'size': list(reader.size),
            'fps': reader.fps,
            **({} if writer is None else {'output_fps': writer.fps}),
            'announced': reader.announced,
            'read': done,
            'undecodable': reader.skipped,
            'heads': mean(frames),
            **({'counts': frames[-1]['counts']} if frames and 'counts' in frames[-1] else {}),
            'ms': {'all': round(1000 * seconds / max(1, done), 2)},
            'frames': list(frames),
        }
        self.entries.append(entry)
        whole = self.options.max_frames is None and self.options.selection == Selection() and not reader.is_live
        if reader.announced != done and whole:
            logger.warning('%s: %s', reader.name, reader.report())

    def _scored(self, result: Result) -> Result:
        return replace(result, min_score=self.options.min_score)

    # ------------------------------------------------------------------------------------------------- drawing

    def _draw(self, result: Result) -> np.ndarray:
        return self._scored(result).draw(alpha=self.options.alpha, legend=self.options.legend)

    def _show(self, image: np.ndarray, title: str, *, wait: int) -> None:
        """Show an image in the window; q and Escape end the demo, any other key goes on."""
        cv2.imshow('vitdense', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        cv2.setWindowTitle('vitdense', title)
        if cv2.waitKey(wait) & 0xFF in (ord('q'), 27):
            self._stopped = True
