"""The model: preprocessing, the network, its tasks, and the test-time strategy."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from vitdense.arguments import check
from vitdense.layers.loss_weights import FixedWeights
from vitdense.ops.padding import rectangles, region_sizes
from vitdense.protocols import BlendableTask, BranchedNetwork, Network, Task, TrainingInputsTask
from vitdense.registry import build, check_part, resolve
from vitdense.test_time.merged_objects import original_objects, read_objects
from vitdense.test_time.sliding_window import Tiler
from vitdense.timing import NETWORK, timed
from vitdense.types import Batch, LabelOutputs, Meta, ObjectOutputs, Outputs, Prediction, SemanticMap, Target


class Preprocessor(nn.Module):
    """Bring a uint8 batch to the device, pad it to whole cells of the network's grid, and normalise it there.

    `mean` and `std` are those of the checkpoint, of RGB values in [0, 1]. Padding is zero *after* normalisation and
    lies at the right and the bottom (that of a transform only where it says so, see `Pad`); `valid` is set only when
    some image leaves a whole cell of `divisor` pixels empty. In training `augment`, `Batch -> Batch`, changes what
    comes out.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        divisor: int = 1,
        augment: Callable[[Batch], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.divisor = divisor
        self.augment = augment
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, data: Batch, training: bool = False) -> Batch:
        imgs, targets, metas, _ = on_device(data, self.mean.device)
        height, width = (-(-side // self.divisor) * self.divisor for side in imgs.shape[-2:])
        sizes = [meta.size for meta in metas]
        imgs = self.normalised(imgs)
        imgs = functional.pad(imgs, (0, width - imgs.shape[-1], 0, height - imgs.shape[-2]))
        valid = rectangles(torch.tensor(sizes, device=imgs.device), (height, width))
        shown = [meta.unpadded_size if meta.zero_padding else meta.size for meta in metas]
        if len(set(sizes)) > 1 or shown != sizes:
            # what pads with black is not zero once normalised
            inside = rectangles(torch.tensor(shown, device=imgs.device), (height, width))
            imgs = imgs * inside[:, None]
        full = all(self._cells(size) == self._cells((height, width)) for size in sizes)
        batch = Batch(imgs, targets, metas, None if full else valid)
        return self.augment(batch) if training and self.augment is not None else batch

    def normalised(self, imgs: Tensor) -> Tensor:
        """Return (B, 3, H, W) uint8 images as float32, on the device."""
        return (imgs.to(self.mean.device).float() - self.mean) / self.std

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.divisor), -(-size[1] // self.divisor)


def on_device(value: Any, device: torch.device) -> Any:
    """Return a record, list, tuple or dict with its tensors on `device`; anything else as it is."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


class DenseModel(nn.Module):
    """A network and the tasks that read its outputs.

    `network` is `(imgs, valid, training_inputs=None) -> {name: Outputs}`; `tasks` maps the same names to tasks. Of a
    network with `trainable_branches` a step runs only those for which some image of the batch has labels. `classes`
    is `{field: names}` as data sets give it (`semantic`, `labels`, `image_label`).

    `tiler` runs the network on overlapping windows at test time; `tta` runs it on several scales and flips and
    averages. Each is `(network, imgs, valid) -> {name: Outputs}`, and `tta` is used only while `use_tta` is True. Each
    view of `tta` is tiled; where the tiler streams labels, each window has its views. Queries are read as objects
    before either joins them.
    `augment`, `Batch -> Batch`, changes training batches on the device (mixup); its `num_classes` is that of
    `image_label`.
    `loss_weights` are numbers by task, or a part such as `UncertaintyWeights` that learns them; losses are logged
    without them, and the sum has them.
    `amp` is the autocast dtype of the network (None: float32); tasks always compute in float32.
    """

    def __init__(
        self,
        network: nn.Module | dict,
        tasks: Mapping[str, object | dict],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        tiler: Callable | dict | None = None,
        tta: Callable | dict | None = None,
        augment: Callable[[Batch], Batch] | dict | None = None,
        loss_weights: Mapping[str, float] | nn.Module | dict | None = None,
    ) -> None:
        classes = dict(classes or {})
        tasks = {name: check_part(_task(task, classes), Task, f'model.tasks.{name}') for name, task in tasks.items()}
        num_classes = {name: len(classes[task.field]) for name, task in tasks.items() if task.field in classes}
        network = check_part(build(network, num_classes=num_classes), Network, 'model.network')
        why = (
            f'every branch needs the task that reads it, under the same name; the branches are {sorted(network.names)}'
        )
        same = set(network.names) == set(tasks)
        check(same, 'model.tasks', sorted(tasks), why, 'give model.tasks exactly the names of the branches')
        options = {'num_classes': len(classes['image_label'])} if 'image_label' in classes else {}
        augment = build(augment, **options)
        super().__init__()
        self.data_preprocessor = Preprocessor(network.mean, network.std, divisor=network.divisor, augment=augment)
        self.network = network
        self.tasks = tasks
        self.classes = classes
        self.tiler = build(tiler, divisor=network.divisor)
        self.tta = build(tta, divisor=network.divisor)
        self.loss_weights = _weights(loss_weights, tuple(tasks))
        self.use_tta = False
        self.skip_unlabelled = True  # branches without labels in a step do not run
        self.amp: torch.dtype | None = None

    @property
    def branches(self) -> Sequence[str]:
        """The branches that are trained."""
        return self.network.trainable_branches if isinstance(self.network, BranchedNetwork) else tuple(self.tasks)

    @property
    def head_classes(self) -> dict[str, list[str]]:
        """`{head: class names}`, for every head whose classes are known."""
        fields = {name: task.field for name, task in self.tasks.items()}
        return {name: list(self.classes[field]) for name, field in fields.items() if field in self.classes}

    def forward(
        self,
        imgs: Tensor,
        targets: Sequence[Target] = (),
        metas: Sequence[Meta] = (),
        valid: Tensor | None = None,
        mode: Literal['tensor', 'loss', 'predict'] = 'tensor',
    ) -> dict[str, Outputs] | dict[str, Tensor] | list[dict[str, Prediction]]:
        """Run one preprocessed batch: raw outputs, losses by name, or one `{head: Prediction}` for each image."""
        if mode == 'loss':
            return self._loss(imgs, targets, metas, valid)
        if mode == 'predict':
            return self._predict(imgs, metas, valid)
        return self._run(imgs, valid)

    def train_step(self, data: Batch, optim_wrapper: Any) -> dict[str, Tensor]:
        """Train on a batch with mmengine's `OptimWrapper`; return the numbers for the log."""
        with optim_wrapper.optim_context(self):
            losses = self(*self.data_preprocessor(data, True), mode='loss')
        total, logged = self.parse_losses(losses)
        optim_wrapper.update_params(total)
        return logged

    def val_step(self, data: Batch) -> list[dict[str, Prediction]]:
        """Return the predictions of a batch, one `{head: Prediction}` for each image."""
        return self(*self.data_preprocessor(data, False), mode='predict')

    test_step = val_step

    def _run(self, imgs: Tensor, valid: Tensor | None, **more: Any) -> dict[str, Outputs]:
        with timed(NETWORK), torch.autocast(imgs.device.type, self.amp, enabled=self.amp is not None):
            return self.network(imgs, valid, **more)

    def _loss(
        self, imgs: Tensor, targets: Sequence[Target], metas: Sequence[Meta], valid: Tensor | None
    ) -> dict[str, Tensor]:
        tasks = {name: self.tasks[name] for name in self.branches}
        readable = {name: _readable(task, targets, metas) for name, task in tasks.items()}
        shares = {name: _labelled(task, readable[name]) for name, task in tasks.items()}
        active = self._active_branches(shares, imgs)
        sizes = region_sizes(valid, imgs, imgs.shape[-2:], self.network.divisor)
        inputs = {
            name: tasks[name].training_inputs(readable[name], sizes)
            for name in active
            if isinstance(tasks[name], TrainingInputsTask)
        }
        options = {'training_inputs': {name: value for name, value in inputs.items() if value is not None} or None}
        if isinstance(self.network, BranchedNetwork):
            options['names'] = active
        outputs = self._run(imgs, valid, **options)
        losses = {}
        for name in active:
            losses |= {f'{name}.{key}': loss for key, loss in tasks[name].loss(outputs[name], readable[name]).items()}
        first = next(key for key in losses if 'loss' in key)
        for parameter in self.loss_weights.parameters():  # distributed training must see that this pass needs them
            losses[first] = losses[first] + 0 * parameter.sum()
        if len(tasks) > 1:
            losses |= {f'{name}.labelled': imgs.new_tensor(share) for name, share in shares.items()}
        return losses

    def _active_branches(self, shares: Mapping[str, float], imgs: Tensor) -> tuple[str, ...]:
        """Return the branches that run in this step: those with labels on some rank, or all where there are none.

        The other branches do not run: their weights, optimizer state and statistics are left unchanged.
        """
        if len(shares) == 1 or not self.skip_unlabelled or not isinstance(self.network, BranchedNetwork):
            return tuple(shares)
        labelled = [share > 0 for share in shares.values()]
        if distributed.is_available() and distributed.is_initialized():
            counts = imgs.new_tensor(labelled)
            distributed.all_reduce(counts)
            labelled = [count > 0 for count in counts.tolist()]
        return tuple(itertools.compress(shares, labelled)) or tuple(shares)

    def weighted_losses(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each task adds to the sum, from the losses by name that `forward` gives."""
        totals: dict[str, Tensor] = {}
        for key, value in losses.items():
            name, _, kind = key.partition('.')
            if 'loss' in kind:
                totals[name] = totals[name] + value if name in totals else value
        labelled = {name: losses[f'{name}.labelled'] for name in totals if f'{name}.labelled' in losses}
        return self.loss_weights(totals, labelled)

    def parse_losses(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over tasks, weighted, and the numbers for the log: `loss` is that sum, its parts as they were.

        Weights that are learned are logged as `TASK.weight`.
        """
        total = sum(self.weighted_losses(losses).values())
        weights = {f'{name}.weight': value for name, value in self.loss_weights.current().items()}
        return total, {'loss': total, **losses, **weights}

    def _predict(self, imgs: Tensor, metas: Sequence[Meta], valid: Tensor | None) -> list[dict[str, Prediction]]:
        outputs = self._strategy(metas)(imgs, valid)
        predictions = {}
        for name, task in self.tasks.items():
            with timed(name):
                predictions[name] = _read(task, outputs[name], metas)
        return [{name: predictions[name][row] for name in predictions} for row in range(len(metas))]

    def _strategy(self, metas: Sequence[Meta]) -> Callable[[Tensor, Tensor | None], dict[str, Outputs]]:
        """Return the network with the test-time strategy: whole images, windows, several views."""
        augmented = self.tta is not None and self.use_tta
        if self.tiler is None and not augmented:
            return self._run
        streams = isinstance(self.tiler, Tiler) and self.tiler.streams
        blendable = partial(self._blendable, 'pixels' if augmented else 'factors' if streams else 'scores')
        run: Callable = partial(read_objects, blendable, {name: task.predict for name, task in self.tasks.items()})
        if augmented and streams:
            run = partial(self.tta, run)
        if self.tiler is not None:
            run = partial(self.tiler, run, **({'metas': metas} if streams else {}))
        if augmented and not streams:
            run = partial(self.tta, run)
        return run

    def _blendable(self, form: str, imgs: Tensor, valid: Tensor | None) -> dict[str, Outputs]:
        """Run the network; queries that stand for labels of pixels are turned into scores, which have an average.

        `form` is 'scores', 'factors' where scores of all pixels need not be held together, or 'pixels', their
        logarithms, which the average of views reads as logits.
        """
        outputs = self._run(imgs, valid)
        tasks = {name: task for name, task in self.tasks.items() if isinstance(task, BlendableTask)}
        return outputs | {name: task.blendable(outputs[name], form) for name, task in tasks.items()}


def _read(task: Any, outputs: Outputs, metas: Sequence[Meta]) -> list[Prediction]:
    """Return the predictions of all images; objects and labels read per window only get their original size."""
    if isinstance(outputs, LabelOutputs):
        return [SemanticMap(labels) for labels in outputs.labels]
    if isinstance(outputs, ObjectOutputs):
        return original_objects(outputs, metas)
    return task.predict(outputs, metas)


def _task(part: Any, classes: Mapping[str, Sequence[str]]) -> Any:
    """Return the task; a recipe of one that takes `num_classes` gets the number of classes of its field."""
    if not isinstance(part, dict):
        return part
    parameters = inspect.signature(resolve(part.get('type'))).parameters
    field = part.get('field', parameters['field'].default if 'field' in parameters else None)
    known = 'num_classes' in parameters and field in classes
    return build(part, **({'num_classes': len(classes[field])} if known else {}))


def _weights(part: Any, names: Sequence[str]) -> nn.Module:
    """Return the part that weighs the losses of the tasks `names`; numbers by task are fixed weights."""
    if isinstance(part, nn.Module):
        return part
    if isinstance(part, Mapping) and 'type' in part:
        return build(part, names=names)
    return FixedWeights(names, part)


def _labelled(task: Any, targets: Sequence[Target]) -> float:
    """Return the share of images that are labelled for `task`; it is 1 for tasks that read no labels."""
    known = [not task.field or target.value_of(task.field) is not None for target in targets]
    return sum(known) / len(known)


def _readable(task: Any, targets: Sequence[Target], metas: Sequence[Meta]) -> list[Target]:
    """Return the targets for `task`: those of data sets that it does not read are empty."""
    if task.datasets is None:
        return list(targets)
    return [target if meta.dataset in task.datasets else Target() for target, meta in zip(targets, metas, strict=True)]
