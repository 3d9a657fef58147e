"""Predictions of the frozen start model as labels of its classes, in data that labels other classes only."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, box_iou

from vitdense.checkpoints.image_sizes import with_sizes
from vitdense.checkpoints.model_folder import build_trained
from vitdense.checkpoints.trained import read_state
from vitdense.config.run_config import RunConfig
from vitdense.errors import ConfigError, did_you_mean, some
from vitdense.model import DenseModel
from vitdense.protocols import BlendableTask
from vitdense.types import IGNORE, Instances, Meta, Target

logger = logging.getLogger('vitdense')
OVERLAP = 0.5  # IoU with a label, above which a prediction is of the labelled object
DEFAULT_SCORE = 0.5
DUPLICATE = 0.7  # IoU of two predictions of one class, of which the better one counts


class PseudoLabels:
    """Adds predictions of `teacher` to the targets of a batch where the teacher's classes are not labelled.

    Label maps: pixels that are not labelled, or labelled as a class of `background`, get the class of the teacher
    where its probability is at least the score of that class in `min_scores`; less certain pixels of the background are
    ignored (Douillard et al. 2021, PLOP, https://arxiv.org/abs/2011.11390, section 3.3, with a fixed threshold). Boxes
    and masks: predictions with at least that score that overlap no labelled object become objects (Liu et al. 2023,
    CL-DETR, https://arxiv.org/abs/2304.03110: detector knowledge distillation).

    Label k of the teacher is label k of the targets. `unlabelled` are those of its labels that the data does not have,
    by field: of the others the teacher adds none. `min_scores` has a number for each of its labels, by field;
    `background` are labels of the data.
    """

    def __init__(
        self,
        teacher: DenseModel,
        unlabelled: Mapping[str, Sequence[int]],
        *,
        min_scores: Mapping[str, Sequence[float]],
        background: Sequence[int] = (),
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.min_scores = {field: torch.tensor(scores) for field, scores in min_scores.items()}
        self.unlabelled = {field: torch.tensor(rows, dtype=torch.int64) for field, rows in unlabelled.items()}
        self.background = torch.tensor(background, dtype=torch.int64)

    @property
    def names(self) -> list[str]:
        """The classes whose labels come from the teacher."""
        return [self.teacher.classes[field][row] for field, rows in self.unlabelled.items() for row in rows.tolist()]

    @torch.no_grad()
    def __call__(
        self, imgs: Tensor, targets: Sequence[Target], metas: Sequence[Meta], valid: Tensor | None
    ) -> list[Target]:
        """Return the targets of a preprocessed batch, those that are labelled with the teacher's labels."""
        outputs, result = self.teacher(imgs, valid=valid), list(targets)
        own = [meta._replace(orig_size=meta.unpadded_size) for meta in metas]  # objects in pixels of the input
        for name, task in self.teacher.tasks.items():
            pixels = task.field == 'semantic'
            predictions = _score_maps(task, outputs[name]) if pixels else task.predict(outputs[name], own)
            add = self._add_pixels if pixels else self._add_objects
            for row, prediction in enumerate(predictions):
                if result[row].value_of(task.field) is not None:
                    result[row] = add(result[row], prediction)
        return result

    def _add_pixels(self, target: Target, scores: Tensor) -> Target:
        """Return `target` with labels of the scores (K, H, W) of the padded input."""
        labels = target.semantic
        best, classes = scores[:, : labels.shape[0], : labels.shape[1]].max(0)
        certain = best >= self._min_scores(classes, 'semantic')
        background = torch.isin(labels, self.background.to(labels))
        labels = labels.masked_fill(background & ~certain, IGNORE)
        added = certain & (background | (labels == IGNORE)) & self._is_unlabelled(classes, 'semantic')
        return target._replace(semantic=torch.where(added, classes.to(labels.dtype), labels))

    def _min_scores(self, labels: Tensor, field: str) -> Tensor:
        return self.min_scores[field].to(labels.device)[labels]

    def _is_unlabelled(self, labels: Tensor, field: str) -> Tensor:
        return torch.isin(labels, self.unlabelled[field].to(labels.device))

    def _add_objects(self, target: Target, predicted: Instances) -> Target:
        """Return `target` with the objects that are found beside its own."""
        keep = (predicted.scores >= self._min_scores(predicted.labels, 'labels')) & self._is_unlabelled(
            predicted.labels, 'labels'
        )
        keep &= (box_iou(predicted.boxes, target.boxes.to(predicted.boxes)) < OVERLAP).all(1)
        predicted = predicted.select(keep.nonzero().squeeze(1))
        predicted = predicted.select(batched_nms(*predicted[:3], DUPLICATE))
        sides = (predicted.boxes[:, 2:] - predicted.boxes[:, :2]).unbind(1)
        new = {'boxes': predicted.boxes, 'labels': predicted.labels, 'iscrowd': torch.zeros_like(predicted.labels)}
        new |= {'area': sides[0] * sides[1], 'annotation_ids': torch.full_like(predicted.labels, -1)}
        if target.masks is not None:
            below, right = (a - b for a, b in zip(target.masks.shape[1:], predicted.masks.shape[1:], strict=True))
            new['masks'] = functional.pad(predicted.masks, (0, right, 0, below))
        old = {name: target.value_of(name) for name in new}
        return target._replace(
            **{name: torch.cat([value, new[name].to(value)]) for name, value in old.items() if value is not None}
        )


def make_pseudo_labels(
    cfg: RunConfig, model: DenseModel, labelled: Mapping[str, Sequence[str]], device: torch.device
) -> PseudoLabels | None:
    """Return what the config's `keep_classes` describes for the model that is trained; None where it has none.

    The scores are `min_score` of it, or those of the best F1 in the validation of the start model, where it has them.
    `labelled` are the classes that the data labels, by field. Raises ConfigError for unknown classes of the background.
    """
    section = cfg.get('keep_classes')
    if not section:
        return None
    state, stored = read_state(section.weights)
    recipe = with_sizes(cfg.model, stored.get('sizes', {}), override=True)
    classes = {field: names for field, names in stored['metainfo']['classes'].items() if field in labelled}
    omitted = stored.get('omitted_weights')
    teacher = build_trained(recipe, classes, state, where=str(section.weights), omitted=omitted)
    teacher.amp = model.amp
    unlabelled = {
        field: [row for row, name in enumerate(model.classes[field][: len(names)]) if name not in labelled[field]]
        for field, names in classes.items()
    }
    names = _background(section.background, labelled.get('semantic', ()))
    background = [list(model.classes['semantic']).index(name) for name in names]
    scores = {task.field: label_scores(section, stored, name, teacher) for name, task in teacher.tasks.items()}
    lowest, highest = min(map(min, scores.values())), max(map(max, scores.values()))
    text = 'labels of the old classes: predictions of %s, with scores from %g (%g for some classes)'
    logger.info(text, section.weights, lowest, highest)
    return PseudoLabels(teacher.to(device), unlabelled, min_scores=scores, background=background)


def label_scores(section: Mapping[str, Any], stored: Mapping[str, Any], head: str, teacher: DenseModel) -> list[float]:
    """Return the score from which a prediction is a label, for each class of a head."""
    number = len(teacher.head_classes[head])
    if section['min_score'] is not None:
        return [section['min_score']] * number
    best = (stored.get('operating_points') or {}).get(head, {}).get('threshold') or []
    best = best if len(best) == number else [None] * number
    return [DEFAULT_SCORE if score is None else score for score in best]


def _background(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    unknown = [name for name in wanted if name not in names and name != 'background']
    if unknown:
        raise ConfigError(
            f"the data has no class '{unknown[0]}'{did_you_mean(unknown[0], names)}",
            where='keep_classes.background',
            why=f'its classes are {some(names)}',
            fix='name the classes that stand for anything else, or none: background=()',
        )
    return [name for name in wanted if name in names]


def _score_maps(task: Any, outputs: Any) -> Iterator[Tensor]:
    """Yield the probabilities of classes (K, H, W) in the padded input of each image."""
    is_logits = not isinstance(task, BlendableTask)
    maps = outputs if is_logits else task.blendable(outputs, 'scores')
    for each in maps.logits:
        full = functional.interpolate(each[None].float(), maps.input_size, mode='bilinear', align_corners=False)[0]
        yield full.softmax(0) if is_logits else full
