"""The loop of an evaluation: predictions of every batch, and the scores of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import Evaluator
from mmengine.runner import BaseLoop

from vitdense.errors import DataError
from vitdense.metrics.base import refuse_non_finite_predictions
from vitdense.train.preemption import interruptible
from vitdense.types import Batch


class EvaluationLoop(BaseLoop):
    """Predicts every batch of a loader, and scores the predictions by the metrics of an evaluator.

    Hooks see the names of mmengine's loops, with `mode` 'val' or 'test'. A batch is None where none of its images could
    be read (`--skip-bad-eval`).
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, mode: Literal['val', 'test']) -> None:
        super().__init__(runner, dataloader)
        self.mode = mode
        self.evaluator = evaluator if isinstance(evaluator, Evaluator) else runner.build_evaluator(evaluator)
        self.evaluator.dataset_meta = dataloader.dataset.metainfo
        runner.visualizer.dataset_meta = dataloader.dataset.metainfo

    def run(self) -> dict[str, Any]:
        """Evaluate and return the scores."""
        runner, mode = self.runner, self.mode
        runner.call_hook(f'before_{mode}')
        runner.call_hook(f'before_{mode}_epoch')
        for _ in self.predictions():
            pass
        metrics = self.scores()
        runner.call_hook(f'after_{mode}_epoch', metrics=metrics)
        runner.call_hook(f'after_{mode}')
        return metrics

    def predictions(self) -> Iterator[tuple[int, Batch | None, list[dict[str, Any]] | None]]:
        """Yield the number, the batch and the predictions of every batch; the evaluator has seen them."""
        self.runner.model.eval()
        for row, batch in enumerate(interruptible(self.dataloader)):
            yield row, batch, None if batch is None else self._predict(row, batch)

    def scores(self) -> dict[str, Any]:
        """Return the scores of all predictions; how many images have none is `skipped_images` among them.

        Raises DataError when no image has one.
        """
        skipped, total = sum(all_gather_object(self.dataloader.dataset.num_bad)), len(self.dataloader.dataset)
        if skipped and skipped == total:
            raise DataError(
                'no image can be evaluated',
                where=f'{self.mode}_dataloader.dataset',
                why=f'all {total} images are unreadable and were skipped',
                fix='see the warnings above for the files, and repair them',
            )
        metrics = self.evaluator.evaluate(total)
        return {**metrics, 'skipped_images': skipped} if skipped else metrics

    @torch.no_grad()
    def _predict(self, row: int, batch: Batch) -> list[dict[str, Any]]:
        runner = self.runner
        runner.call_hook(f'before_{self.mode}_iter', batch_idx=row, data_batch=batch)
        outputs = getattr(runner.model, f'{self.mode}_step')(batch)
        refuse_non_finite_predictions(outputs, batch.metas)
        self.evaluator.process(data_samples=outputs, data_batch=batch)
        runner.call_hook(f'after_{self.mode}_iter', batch_idx=row, data_batch=batch, outputs=outputs)
        return outputs
