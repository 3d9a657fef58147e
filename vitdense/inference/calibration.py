"""Calibrated scores of objects: temperature scaling, with the temperature fitted in validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from vitdense.errors import ConfigError
from vitdense.ops.temperature import at_temperature
from vitdense.types import Instances, Prediction


def calibrated_metainfo(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metainfo of a model with thresholds for calibrated scores. Raises ConfigError without temperatures."""
    points = copy.deepcopy(metainfo.get('operating_points') or {})
    if not points:
        raise ConfigError(
            'the model has no temperature to calibrate its scores with',
            where='calibrated=True',
            why='its folder holds no operating_points, which a validation of boxes, masks or classes finds',
            fix='run tools/test.py on labelled images with --save-thresholds, or leave calibrated out',
        )
    for each in points.values():
        known = [0.5 if value is None else value for value in each['threshold']]
        scaled = at_temperature(torch.tensor(known, dtype=torch.float64), each['temperature']).tolist()
        each['threshold'] = [None if old is None else new for old, new in zip(each['threshold'], scaled, strict=True)]
    return {**metainfo, 'operating_points': points}


def calibrate(predictions: Mapping[str, Prediction], metainfo: Mapping[str, Any]) -> dict[str, Prediction]:
    """Return predictions with the scores of objects at the temperature of their head."""
    points = metainfo['operating_points']
    return {
        head: prediction._replace(scores=at_temperature(prediction.scores, points[head]['temperature']))
        if isinstance(prediction, Instances) and head in points
        else prediction
        for head, prediction in predictions.items()
    }
