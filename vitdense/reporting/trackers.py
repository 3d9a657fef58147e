"""Optional logging to TensorBoard, Weights & Biases and MLflow. A tracker that fails is warned of once and dropped.

mmengine 0.10.7's visualizer backends do not fit: `WandbVisBackend.add_scalars(row, step=40)` calls `wandb.log(row,
commit=True)`, without the step, and closes with `wandb.join()`, which wandb has no more; `MLflowVisBackend` replaces
the tracking URI of the environment and ends with an AttributeError unless it has logged all parameters of the config.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from vitdense.arguments import check_choice

logger = logging.getLogger('vitdense')
Row = Mapping[str, float | int | None]


class Trackers:
    """The experiment loggers of the config's `loggers`; every new row of numbers goes to each."""

    def __init__(self, names: Sequence[str], work_dir: Path, config: Mapping[str, Any]) -> None:
        for name in names:
            check_choice('loggers', name, tuple(TRACKERS))
        self.names = tuple(names)
        self.work_dir = work_dir
        self.config = config
        self._trackers: dict[str, Any] = {}

    def begin(self, run: str) -> None:
        """Start all trackers, for a run of this name."""
        for name in self.names if is_main_process() else ():
            self._guard(name, lambda name=name: self._open(name, run))

    def _open(self, name: str, run: str) -> None:
        self._trackers[name] = TRACKERS[name](self.work_dir, run, self.config)

    def log(self, row: Row | None) -> None:
        """Log the numbers of a row, if there is one."""
        numbers = {key: value for key, value in (row or {}).items() if key != 'step' and value is not None}
        for name, tracker in list(self._trackers.items()) if row is not None else ():
            self._guard(name, lambda tracker=tracker: tracker.log(numbers, row['step']))

    def close(self) -> None:
        """End all trackers."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)
        self._trackers = {}

    def _guard(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except ModuleNotFoundError as error:
            logger.warning(
                "logging to %s is off: the package '%s' is not installed; pip install 'vitdense[%s]' brings it",
                name,
                error.name,
                name,
            )
        except Exception as error:  # a tracker is not worth a run
            self._trackers.pop(name, None)
            logger.warning('logging to %s stopped: %s: %s', name, type(error).__name__, error)


class TensorBoard:
    """Event files of TensorBoard in the work directory."""

    def __init__(self, work_dir: Path, run: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(work_dir / 'tensorboard'))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, work_dir: Path, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project='vitdense', name=run, dir=str(work_dir), config=dict(config))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow."""

    def __init__(self, work_dir: Path, run: str, config: Mapping[str, Any]) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment('vitdense')
        mlflow.start_run(run_name=run)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics({key: float(value) for key, value in numbers.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Any]] = {
    'tensorboard': TensorBoard,
    'wandb': WeightsAndBiases,
    'mlflow': MLflow,
}
