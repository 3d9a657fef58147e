"""Linear segmentation probe on cached feature maps, at several learning rates at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from vitdense.arguments import check
from vitdense.probing.feature_cache import FeatureCache, ImageFeatures
from vitdense.registry import build
from vitdense.types import Batch, Features, Meta, PixelOutputs, Target

RATES = (1e-3, 3e-3, 1e-2)
WEIGHT_DECAY = 1e-4
HELD_OUT = 10  # every tenth image for training chooses the learning rate


class PixelProbe:
    """Trains the linear head of `recipe` on cached feature maps and evaluates it with the metrics of a config.

    `task` gives loss and predictions. Each learning rate has its own head, trained on the same batches by AdamW with
    weight decay 1e-4, linear warmup over a tenth of the steps and cosine decay to zero.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        cache: FeatureCache,
        task: Any,
        num_classes: int,
        *,
        name: str,
        batch_size: int,
        steps: int,
        seed: int = 0,
        device: torch.device | str = 'cpu',
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.recipe, self.cache, self.task, self.num_classes = recipe, cache, task, num_classes
        self.name, self.batch_size, self.steps, self.seed = name, batch_size, steps, seed
        self.device, self.on_progress = torch.device(device), on_progress

    def fit(self, rates: Sequence[float], images: Sequence[int]) -> list[nn.Module]:
        """Return a head for each of `rates`, trained on the images of these numbers, in evaluation mode."""
        torch.manual_seed(self.seed)
        first = self._head(self.cache[images[0]])
        heads = [first, *(self._head(self.cache[images[0]]) for _ in rates[1:])]
        for head in heads[1:]:
            head.load_state_dict(first.state_dict())  # the same initial weights for all rates
        optimizers = [
            AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
            for head, rate in zip(heads, rates, strict=True)
        ]
        warmup = max(1, self.steps // 10)
        for step, rows in zip(range(self.steps), self._batches(images), strict=False):
            features, targets = self._crops([self.cache[row] for row in rows], torch.Generator().manual_seed(step))
            share = min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))
            for head, rate, optimizer in zip(heads, rates, optimizers, strict=True):
                optimizer.param_groups[0]['lr'] = rate * share
                losses = self.task.loss(head(features), targets)
                optimizer.zero_grad()
                sum(loss for name, loss in losses.items() if name.startswith('loss_')).backward()
                optimizer.step()
            self.on_progress(step + 1, self.steps)
        return [head.eval() for head in heads]

    def scores(
        self, head: nn.Module, cache: FeatureCache, images: Iterable[int], metrics: Sequence[Any]
    ) -> dict[str, float]:
        """Return the scores of `head` by `metrics` on the `images` (indices) of `cache`."""
        for index in images:
            record = cache[index]
            with torch.inference_mode():
                outputs: PixelOutputs = head(self._features([record]))
            meta = Meta(index, size=record.size, orig_size=tuple(record.target.shape))
            prediction = self.task.predict(outputs, [meta])[0]
            batch = Batch(torch.empty(0), [Target(**{self.task.field: record.target})], [meta])
            for metric in metrics:
                metric.process(batch, [{self.name: prediction}])
        return {key: float(value) for metric in metrics for key, value in metric.evaluate(len(cache)).items()}

    def choose_rate(self, rates: Sequence[float], metrics: Sequence[Any]) -> tuple[float, dict[float, float]]:
        """Return the learning rate with the best score on every tenth image, held out of training, and that score of
        each rate.
        """
        held = range(HELD_OUT - 1, len(self.cache), HELD_OUT)
        if len(rates) == 1 or not held:
            return rates[0], {}
        heads = self.fit(rates, [row for row in range(len(self.cache)) if row not in held])
        by_rate = {}
        for rate, head in zip(rates, heads, strict=True):
            scores = self.scores(head, self.cache, held, metrics)
            by_rate[rate] = scores.get(f'{self.name}/mIoU', next(iter(scores.values()), 0.0))
        return max(by_rate, key=by_rate.__getitem__), by_rate

    def _head(self, record: ImageFeatures) -> nn.Module:
        stride = record.input_size[0] / record.grid[0]
        options = dict(in_channels=(record.features.shape[1],), strides=(stride,), num_classes=self.num_classes)
        return build(dict(self.recipe), **options).to(self.device).train()

    def _batches(self, images: Sequence[int]) -> Iterator[list[int]]:
        """Yield the image indices of each batch, one random permutation after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        left: list[int] = []
        while True:
            while len(left) < self.batch_size:
                left += [images[row] for row in torch.randperm(len(images), generator=generator).tolist()]
            yield left[: self.batch_size]
            left = left[self.batch_size :]

    def _features(self, records: Sequence[ImageFeatures]) -> Features:
        """Return the feature maps of records with one grid size as a batch."""
        maps = torch.stack([_map(record) for record in records]).to(self.device)
        return Features(maps=(maps.float(),), input_size=records[0].input_size)

    def _crops(self, records: Sequence[ImageFeatures], generator: torch.Generator) -> tuple[Features, list[Target]]:
        """Return random crops of features and targets at whole cells, as large as the smallest map."""
        high, wide = (min(record.grid[side] for record in records) for side in (0, 1))
        maps, targets = [], []
        for record in records:
            step = record.input_size[0] // record.grid[0]
            top, left = (
                int(torch.randint(record.grid[side] - least + 1, (), generator=generator))
                for side, least in ((0, high), (1, wide))
            )
            maps.append(_map(record)[:, top : top + high, left : left + wide])
            target = record.target[top * step : (top + high) * step, left * step : (left + wide) * step]
            targets.append(Target(**{self.task.field: target.to(self.device)}))
        stacked = torch.stack(maps).to(self.device).float()
        return Features(maps=(stacked,), input_size=(high * step, wide * step)), targets


def _map(record: ImageFeatures) -> Tensor:
    return record.features.unflatten(0, record.grid).permute(2, 0, 1)  # (h * w, C) -> (C, h, w)


def check_cells(record: ImageFeatures) -> None:
    """Raise ConfigError unless each cell of the map covers whole pixels."""
    whole = not any(size % cells for size, cells in zip(record.input_size, record.grid, strict=True))
    why = f'features of an input of {record.input_size} pixels are cut at cells, which are whole pixels'
    check(whole, 'cells of a map', record.grid, why, 'probe with the maps of the ViT: adapter=dict(type=PlainMaps)')
