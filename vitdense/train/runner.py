"""mmengine's Runner around parts that are built already."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

import vitdense
from vitdense.config.dump import config_text
from vitdense.config.run_config import RunConfig
from vitdense.device import Precision
from vitdense.distributed.processes import Process
from vitdense.distributed.sharding import is_sharded, replicate
from vitdense.reporting.console import ignore_errors
from vitdense.storage.atomic import try_write_text
from vitdense.train.trainer import TrainingLoop

logger = logging.getLogger('vitdense')
_numbers = count()  # runners of one process need different names: mmengine shares state between equal ones


class DenseRunner(Runner):
    """mmengine's Runner around parts that are built already: devices and processes, hooks, the log file.

    `make_trainer` and `make_tester` make one. Beside mmengine's attributes: `device`, `folder` (the work directory),
    `metainfo` (of the training data), `precision`. `training` are the arguments of `TrainingLoop`, and `checkpoint` is
    the content of the checkpoint to go on from.
    """

    def __init__(
        self,
        cfg: RunConfig,
        model: nn.Module,
        *,
        process: Process,
        metainfo: Mapping[str, Any],
        hooks: Sequence[Hook] = (),
        training: Mapping[str, Any] | None = None,
        precision: Precision | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        self.config = cfg  # `cfg` is mmengine's copy
        self.device = process.device
        self.folder = process.work_dir
        self.metainfo = dict(metainfo)
        self.trains = training is not None
        self.precision = precision
        self.checkpoint = checkpoint
        super().__init__(
            model,
            str(process.work_dir),
            default_hooks=dict.fromkeys(
                ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
            ),
            custom_hooks=list(hooks),
            launcher='pytorch' if torch.distributed.is_initialized() else 'none',
            env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
            randomness=dict(seed=cfg.seed),
            experiment_name=f'vitdense_{os.getpid()}_{next(_numbers)}',
            default_scope=None,  # parts are built by vitdense's own registry
            visualizer=dict(type=Visualizer),  # writes nothing
            train_cfg={} if self.trains else None,  # mmengine would copy the parts of the loop
            cfg=cfg,
            **parts,
        )
        if training is not None:
            self._train_loop = TrainingLoop(self, self._train_dataloader, **training)

    @property
    def timestamp(self) -> str:
        """The folder of logs below the work directory, which is the work directory itself."""
        return '.'

    @property
    def network_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Send mmengine's lines to the log file; the console gets its warnings only."""
        try:
            logger_of_runner = super().build_logger(log_level, log_file or str(self.folder / 'log.txt'), **kwargs)
        except OSError:  # `start_logging` has warned of it
            logger_of_runner = super().build_logger(log_level, os.devnull, **kwargs)
        for handler in logger_of_runner.handlers:
            handler.handleError = ignore_errors
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return logger_of_runner

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Move the model to the device; with several processes, wrap it for them. A sharded one is ready."""
        return model if is_sharded(model) else replicate(model.to(self.device), self.device)

    def _init_model_weights(self) -> None:
        """The model was built with its weights; mmengine would initialise them anew."""

    def _log_env(self, env_cfg: Mapping[str, Any]) -> None:
        """Log the versions; mmengine would run compilers to find theirs."""
        self.logger.info('vitdense %s, torch %s, %s', vitdense.__version__, torch.__version__, self.device)

    def dump_config(self) -> None:
        """Write the config of a training run, complete and with its work directory, as `config.py`."""
        if self.rank == 0 and self.trains:
            text = config_text({**self.config, 'work_dir': str(self.folder)})
            self.config_written = try_write_text(self.folder / 'config.py', text)

    def load_or_resume(self) -> None:
        """Go on from `checkpoint`, if there is one; called by mmengine once everything is built."""
        if self.checkpoint is not None and not self._has_loaded:
            self.train_loop.restore(self.checkpoint)
            self._has_loaded = True
