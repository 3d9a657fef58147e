"""ReconstructionError: a mean over images, and over ranks that have some or none."""

import functools

import pytest
import torch

from vitdense.metrics.reconstruction import ReconstructionError
from vitdense.types import Reconstruction


def output(error: float) -> dict[str, Reconstruction]:
    return {'mae': Reconstruction(torch.zeros(3, 2, 2), torch.zeros(2, 2).bool(), torch.tensor(error))}


def test_images_count_alike_whatever_the_batches():
    metric = ReconstructionError()
    metric.process(None, [output(1.0), output(2.0)])
    metric.process(None, [output(6.0)])
    assert metric.evaluate(3) == {'mae/error': 3.0}
    metric.process(None, [output(0.5)])  # the first evaluation is forgotten
    assert metric.evaluate(1) == {'mae/error': 0.5}
    assert metric.evaluate(0) == {}


def _of_rank(errors: dict[int, list[float]], rank: int) -> dict[str, float]:
    metric = ReconstructionError()
    if errors[rank]:
        metric.process(None, [output(error) for error in errors[rank]])
    return metric.evaluate(3)


def test_two_ranks_give_one_score(run_ranks):
    scores = run_ranks(functools.partial(_of_rank, {0: [1.0, 2.0, 6.0], 1: []}))
    assert [score['mae/error'] for score in scores] == [pytest.approx(3.0)] * 2
