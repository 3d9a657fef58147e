"""The predictor: a trained model that takes images and returns typed results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from vitdense.arguments import check, interval
from vitdense.data.files.bit_depth import stretch
from vitdense.data.files.images import from_pil, read_image
from vitdense.data.files.opening import MAX_PIXELS
from vitdense.data.files.tiled_tiff import TiledTiff
from vitdense.data.transforms.common import Pipeline
from vitdense.device import choose_precision, finish_work, out_of_memory, read_device
from vitdense.errors import DataError
from vitdense.inference.calibration import calibrate, calibrated_metainfo
from vitdense.inference.options import (
    device_name,
    folder_name,
    precision,
    refuse_unknown,
    whole_number,
)
from vitdense.inference.result import Result
from vitdense.inference.windowed_image import IN_WINDOWS, WindowedImage, preview_step
from vitdense.ops.packed_masks import PackedMasks
from vitdense.test_time.sliding_window import Tiler
from vitdense.timing import NETWORK, Stopwatch, is_compiled, parts_of
from vitdense.types import Batch, Instances, Meta, Prediction, Sample, Target

if TYPE_CHECKING:
    from PIL import Image

    from vitdense.model import DenseModel

    ImageInput = str | Path | Image.Image | np.ndarray | Tensor

logger = logging.getLogger('vitdense')
MORE_IN_WINDOWS = 20  # times the pixels that are read as a whole
STAGES = ('load', 'preprocess', 'network', 'postprocess')
_PIL_DECODING = threading.Lock()  # a PIL image is decoded at its first use, and threads may share one


def load(model_dir: str | Path, *, accept_licence: bool = False, trust: bool = False, **options: Any) -> Predictor:
    """Return the predictor of a model folder (`model.json`, `model.safetensors`), as training leaves one, of an
    exported one (`model.onnx`, `export.json`), as tools/export.py leaves one, or of a published model by its name
    (`vitdense models`) or `hf:OWNER/NAME[@REVISION]`, fetched at its first use; `accept_licence` accepts a licence with
    conditions, `trust` an exported program of torch.export (`model.pt2`), whose reader can run code of the file.

    `options` go to `Predictor`: `device`, `amp`, `batch_size`, `max_pixels`, `tile`, `value_range` (default: that of
    the validation data). Loading runs no code of the folder without `trust`. Raises CheckpointError for an
    incomplete folder, ConfigError for unknown or wrong options.
    """
    from vitdense.checkpoints.model_folder import read_model_folder
    from vitdense.export.folder import is_exported, read_exported

    refuse_unknown(options, [*OPTIONS, 'accept_licence', 'trust'], where='vitdense.load')
    folder = folder_name(model_dir)
    if not folder.exists():
        from vitdense.convert.model_names import model_path

        folder = model_path(model_dir, accept_licence=accept_licence)
    model, info = read_exported(folder, trusted=trust or None) if is_exported(folder) else read_model_folder(folder)
    options = {'value_range': info.get('value_range'), **options}
    return Predictor(model, transforms=info['transforms'], metainfo=_metainfo(info), **options)


class Predictor:
    """Runs a trained model on images of any size.

    `transforms` are the evaluation transforms the model was validated with: parts or recipes, `Sample -> Sample`.
    `metainfo` is `{'classes': {field: names}, 'palette': {field: rgb}}`; classes default to the model's own. `device`
    defaults to the first GPU, else the CPU. `amp` is the precision of the network: 'bf16', 'fp16' (CUDA), 'off'
    (float32), or 'auto': bf16 where it is measured to be faster. `batch_size` is the largest number of images of a
    list, or windows of an image, in one forward pass, halved where memory is too small; `max_pixels` is
    the largest size of an image file. With `tile`, images keep their size, without `transforms`, and pass in windows of
    that side with a stride of two thirds of it: any size in bounded memory (`Tiler`, accumulate='labels'). Each window
    has all queries of a detector; `tile_objects` is how many of its objects are kept (default: all). TIFF files of more
    than 40 Mpx are then read in windows, up to 20 times `max_pixels`; their `Result` has a smaller copy of the image.
    `value_range` (low, high) are black and white of files and arrays of more than 8 bits whose range is not known: 12
    bits stored in 16, or floats. `calibrated`: scores of objects are at the temperature that fits validation best.
    """

    def __init__(
        self,
        model: DenseModel,
        *,
        transforms: Sequence[Callable[[Sample], Sample] | dict] = (),
        metainfo: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        amp: Literal['auto', 'bf16', 'fp16', 'off'] = 'auto',
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        tile: int | None = None,
        tile_objects: int | None = None,
        value_range: tuple[float, float] | None = None,
        calibrated: bool = False,
    ) -> None:
        self.batch_size = whole_number(batch_size, 'batch_size')
        self.max_pixels = whole_number(max_pixels, 'max_pixels')
        self.value_range = interval(value_range, 'value_range')
        self.device = read_device(device_name(device))
        chosen = choose_precision(precision(amp), self.device)
        if tile is not None:
            model.tiler = _tiler(whole_number(tile, 'tile'), self.batch_size, model.network.divisor)
            model.tiler.max_objects = None if tile_objects is None else whole_number(tile_objects, 'tile_objects')
        self.tiled = tile is not None
        self.model = model.to(self.device).eval()
        self.model.amp = chosen.dtype
        self.transforms = Pipeline(() if tile is not None else transforms)
        fields = {name: task.field for name, task in model.tasks.items()}
        self.metainfo = {'classes': model.classes, **(metainfo or {}), 'head_fields': fields}
        self.calibrated = calibrated
        if calibrated:
            self.metainfo = calibrated_metainfo(self.metainfo)

    @property
    def classes(self) -> dict[str, list[str]]:
        """The class names of every head that has classes, `{head: names}`."""
        lists = self.metainfo.get('classes') or {}
        return {head: list(lists[field]) for head, field in self.metainfo['head_fields'].items() if lists.get(field)}

    def warm_up(self, size: tuple[int, int] = (640, 640)) -> None:
        """Run a black image of (H, W) `size`, so that the first real one is not slower than the others."""
        self(np.zeros((*size, 3), np.uint8))

    def __call__(
        self, image: ImageInput | Sequence[ImageInput] | Iterator[ImageInput]
    ) -> Result | list[Result] | Iterator[Result]:
        """Return the `Result` of an image, a list of them for a list, and a generator for an iterator.

        An image is a path, a PIL image (turned upright by its EXIF tag), an RGB array (H, W, 3) uint8 - a grey (H, W)
        one and one with alpha (H, W, 4) are understood -, or a (3, H, W) uint8 tensor. Images of a list that have
        one size after the transforms form a batch; results keep the order of the list.

        Raises DataError for anything that is not an image, naming the file.
        """
        if isinstance(image, Iterator):
            return self._stream(image)
        if not isinstance(image, list | tuple):
            return self._run([self._prepare(image)])[0]
        prepared = [self._prepare(item) for item in image]
        results: list[Result | None] = [None] * len(prepared)
        most = 1 if self.tiled else self.batch_size  # windows of one image form batches
        for rows in _equal_sizes([item.sample.meta.size for item in prepared], most):
            for row, result in zip(rows, self._fitting([prepared[row] for row in rows]), strict=True):
                results[row] = result
        return results

    def _stream(self, images: Iterator[ImageInput]) -> Iterator[Result]:
        """Yield the results of images, `batch_size` of them read at a time."""
        for group in iter(lambda: list(islice(images, self.batch_size)), []):
            yield from self(group)

    def _fitting(self, items: Sequence[_Prepared]) -> list[Result]:
        """Return the results of images of one size; a batch that does not fit into memory is halved."""
        try:
            return self._run(items)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(items) == 1 or not out_of_memory(error):
                raise
        half = len(items) // 2
        self.batch_size = max(1, min(self.batch_size, half))
        logger.warning('out of memory: batches of %d images from here on', self.batch_size)
        return self._fitting(items[:half]) + self._fitting(items[half:])

    def read(self, image: ImageInput) -> Tensor | TiledTiff:
        """Return any kind of image as the predictor reads it: (3, H, W) uint8 RGB on the CPU. Raises DataError.

        With `tile`, a large TIFF file is opened only: its windows are read when they are predicted.
        """
        if self.tiled and isinstance(image, str | Path):
            limit = self.max_pixels * MORE_IN_WINDOWS
            tiff = TiledTiff.of(image, max_pixels=limit, value_range=self.value_range)
            if tiff is not None and tiff.size[0] * tiff.size[1] > IN_WINDOWS:
                return tiff
        if isinstance(image, TiledTiff):
            return image
        return as_tensor(image, max_pixels=self.max_pixels, value_range=self.value_range)

    def _prepare(self, image: ImageInput) -> _Prepared:
        start = time.perf_counter()
        img = self.read(image)
        loaded = time.perf_counter()
        path = str(image) if isinstance(image, str | Path) else ''
        size = tuple(img.shape[-2:])
        meta = Meta(image_id=path, path=path, orig_size=size, size=size)
        if self.tiled:
            return _Prepared(img, Sample(img, Target(), meta), {'load': loaded - start})
        sample = self.transforms(Sample(tv_tensors.Image(img), Target(), meta))
        times = {'load': loaded - start, 'preprocess': time.perf_counter() - loaded}
        return _Prepared(img, sample, times)

    @classmethod
    def from_config(cls, config: str | Path, checkpoint: str | Path, **options: Any) -> Predictor:
        """Return the predictor of a config file and a checkpoint that was trained with it.

        The transforms are those of the config's test data, the classes those stored in the checkpoint. `options`
        go to `Predictor`. **The config is code and runs.** Raises ConfigError, CheckpointError.
        """
        from vitdense.inference.from_config import read_checkpoint_model

        refuse_unknown(options, OPTIONS, where='Predictor.from_config')
        model, info = read_checkpoint_model(config, checkpoint)
        options = {'value_range': info.get('value_range'), **options}
        return cls(model, transforms=info['transforms'], metainfo=_metainfo(info), **options)

    @torch.inference_mode()
    def _run(self, items: Sequence[_Prepared]) -> list[Result]:
        """Return the results of images of one size. Times of shared work are divided by their number."""
        start = self._now()
        batch = self._batch(items)
        ready = self._now()
        watch, network = Stopwatch(self._now), self.model.network
        with watch.running(), watch.watching(parts_of(network)):
            predictions = self.model(*batch, mode='predict')
        predictions = [{head: _on_cpu(record) for head, record in heads.items()} for heads in predictions]
        if self.calibrated:
            predictions = [calibrate(heads, self.metainfo) for heads in predictions]
        done = self._now()
        inside = watch.seconds.pop(NETWORK)
        shared = {'preprocess': ready - start, 'network': inside, 'postprocess': done - ready - inside}
        parts = {} if is_compiled(network) else watch.seconds
        spent = {name: seconds / len(items) for name, seconds in parts.items()}
        results = []
        for item, heads in zip(items, predictions, strict=True):
            times = {stage: item.times.get(stage, 0.0) + shared.get(stage, 0.0) / len(items) for stage in STAGES}
            step = preview_step(item.image.size) if isinstance(item.image, TiledTiff) else 1
            image = item.image.preview(step) if isinstance(item.image, TiledTiff) else item.image
            image = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
            results.append(
                Result(
                    image,
                    heads,
                    self.metainfo,
                    times,
                    spent,
                    item.sample.meta.path,
                    size=item.sample.meta.orig_size,
                    step=step,
                )
            )
        return results

    def _batch(self, items: Sequence[_Prepared]) -> Batch:
        targets, metas = [item.sample.target for item in items], [item.sample.meta for item in items]
        if self.tiled:
            preprocessor = self.model.data_preprocessor
            windows = WindowedImage(items[0].image, preprocessor.normalised, divisor=preprocessor.divisor)
            return Batch(windows, targets, metas)
        imgs = torch.stack([item.sample.img.as_subclass(Tensor) for item in items])
        return self.model.data_preprocessor(Batch(imgs, targets, metas), False)

    def _now(self) -> float:
        """Return the time in seconds once the device has done its work."""
        finish_work(self.device)
        return time.perf_counter()


OPTIONS = [name for name in Predictor.__init__.__kwdefaults__ if name not in ('transforms', 'metainfo')]


@dataclass(frozen=True)
class _Prepared:
    image: Tensor | TiledTiff  # (3, H, W) uint8, before the transforms
    sample: Sample  # after the transforms
    times: Mapping[str, float]


def as_tensor(
    image: ImageInput, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Return any kind of image as (3, H, W) uint8 RGB on the CPU. Raises DataError for anything else.

    `value_range` (low, high) says black and white where the range is not known: see `read_image`.
    """
    if isinstance(image, str | Path):
        return read_image(image, max_pixels=max_pixels, value_range=value_range)
    if isinstance(image, Tensor):
        if image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8 and image.numel():
            return image.as_subclass(Tensor).detach().cpu()
        raise _no_image(f'a tensor of shape {tuple(image.shape)} and {image.dtype}', 'a (3, H, W) uint8 tensor')
    if isinstance(image, np.ndarray):
        return _from_array(image, value_range)
    if hasattr(image, 'getexif') and hasattr(image, 'convert'):  # a PIL image, without importing PIL to ask
        with _PIL_DECODING:
            return from_pil(image, value_range=value_range)
    raise _no_image(f'an object of type {type(image).__name__}', 'a path, a PIL image, an array or a tensor')


def _from_array(array: np.ndarray, value_range: tuple[float, float] | None) -> Tensor:
    if array.dtype != np.uint8 and value_range is not None and array.dtype.kind in 'uif':
        array = stretch(array, value_range)
    if array.dtype != np.uint8:
        wanted = 'an (H, W, 3) uint8 array with values 0..255, RGB, or value_range=(low, high) to the predictor'
        raise _no_image(f'an array of {array.dtype}', wanted)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise _no_image(f'an array of shape {array.shape}', 'an (H, W, 3) uint8 array; of (3, H, W) give a tensor')
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)  # a copy: (H, W, 3) -> (3, H, W)


def _no_image(what: str, wanted: str) -> DataError:
    return DataError(
        f'{what} is not an image',
        where='predictor(image)',
        why='its value range and layout would have to be guessed',
        fix=f'give {wanted}',
    )


def _tiler(tile: int, batch_size: int, divisor: int) -> Tiler:
    fix = 'give a side near the size of its training images, such as tile=512'
    check(tile >= 2 * divisor, 'tile', tile, f'windows are too small for patches of {divisor} pixels', fix)
    return Tiler(tile, max(tile * 2 // 3, 1), batch=batch_size, accumulate='labels', even=True, divisor=divisor)


def _metainfo(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: info[key] for key in ('classes', 'palette', 'category_ids', 'operating_points') if info.get(key)}


def _on_cpu(prediction: Prediction) -> Prediction:
    """Return a prediction on the CPU, masks of objects packed."""
    moved = type(prediction)(*(value.cpu() if isinstance(value, Tensor) else value for value in prediction))
    if isinstance(moved, Instances) and moved.masks is not None:
        return moved._replace(masks=PackedMasks.of(moved.masks))
    return moved


def _equal_sizes(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    """Yield the indices of images of equal size, at most `most` at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, size in enumerate(sizes):
        groups.setdefault(size, []).append(row)
    for rows in groups.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
