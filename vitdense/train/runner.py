"""mmengine's Runner around our parts: devices and processes, the optimizer, the state of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

import vitdense
from vitdense.checkpoints.omitted_weights import describe_omitted
from vitdense.checkpoints.run import to_cpu
from vitdense.config.dump import config_text
from vitdense.device import Precision
from vitdense.reporting.console import ignore_errors, print_table
from vitdense.reporting.history import HistoryHook
from vitdense.storage.atomic import try_write_text
from vitdense.train.hooks import CheckpointHook
from vitdense.train.loaders import close_loaders
from vitdense.train.optim import build_optimizer, config_groups, group_rows
from vitdense.train.preemption import PreemptionHook, obey_signals
from vitdense.train.schedule import Schedule
from vitdense.train.step import GuardedOptimWrapper, read_clipping

logger = logging.getLogger('vitdense')
_numbers = count()  # runners of one process need different names: mmengine shares state between equal ones


class DenseRunner(Runner):
    """mmengine's Runner around parts that are built already. `make_trainer` and `make_tester` make one.

    Beside mmengine's attributes: `device`, `folder` (the work directory), `metainfo` (of the training data),
    `schedule`, `history`, `saving`. `checkpoint` is the content of the checkpoint to go on from.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        *,
        work_dir: Path,
        device: torch.device,
        metainfo: Mapping[str, Any],
        hooks: Sequence[Hook] = (),
        schedule: Schedule | None = None,
        precision: Precision | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        self.device = device
        self.folder = Path(work_dir)
        self.metainfo = dict(metainfo)
        self.schedule = schedule
        self.precision = precision
        self.checkpoint = checkpoint
        self.history = next((hook for hook in hooks if isinstance(hook, HistoryHook)), None)
        self.saving = next((hook for hook in hooks if isinstance(hook, CheckpointHook)), None)
        super().__init__(
            model,
            str(work_dir),
            default_hooks=dict.fromkeys(
                ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
            ),
            custom_hooks=list(hooks),
            launcher='pytorch' if torch.distributed.is_initialized() else 'none',
            env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
            randomness=dict(seed=cfg.seed),
            experiment_name=f'vitdense_{os.getpid()}_{next(_numbers)}',
            default_scope=None,  # parts are built by vitdense's own registry
            cfg=cfg,
            **parts,
        )

    @property
    def timestamp(self) -> str:
        """mmengine puts logs into a folder of this name; ours lie in the work directory itself."""
        return '.'

    @property
    def network_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Send mmengine's lines to the log file; the console gets its warnings only."""
        try:
            made = super().build_logger(log_level, log_file or str(self.folder / 'log.txt'), **kwargs)
        except OSError:  # `start_logging` has said so
            made = super().build_logger(log_level, os.devnull, **kwargs)
        for handler in made.handlers:
            handler.handleError = ignore_errors
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return made

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Return a visualizer that writes nothing by itself."""
        from mmengine.visualization import Visualizer

        return visualizer or Visualizer.get_instance(self._experiment_name)

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Move the model to the device; with several processes, wrap it for them."""
        model = model.to(self.device)
        if not torch.distributed.is_initialized():
            return model
        cuda = self.device.type == 'cuda'
        if cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return MMDistributedDataParallel(
            module=model,
            device_ids=[self.device.index] if cuda else None,
            broadcast_buffers=True,
            find_unused_parameters=len(getattr(getattr(model, 'network', None), 'trainable_branches', ())) > 1,
        )

    def build_optim_wrapper(self, optim_wrapper: Any) -> GuardedOptimWrapper:
        """Build the optimizer of the config's `optim_wrapper`, and say what learns how fast."""
        if isinstance(optim_wrapper, GuardedOptimWrapper):
            return optim_wrapper
        recipe = optim_wrapper['optimizer']
        split = self.schedule is not None and bool(self.schedule.backbone_warmup_iters)
        groups = config_groups(optim_wrapper, self.network_model, split_backbone=split)
        optimizer = build_optimizer(recipe, groups)
        if self.rank == 0:
            rows = group_rows(groups, recipe['lr'], optimizer.defaults.get('weight_decay', 0))
            print_table('what learns', ('part', 'lr', 'with weight decay', 'without'), rows)
        return GuardedOptimWrapper(
            optimizer,
            self.network_model,
            accumulative_counts=optim_wrapper['accumulative_counts'],
            clipping=read_clipping(optim_wrapper['clip_grad']),
            scaled=self.precision.scaled,
        )

    def _init_model_weights(self) -> None:
        """Weights were made when the model was built."""

    def _log_env(self, env_cfg: Mapping[str, Any]) -> None:
        self.logger.info('vitdense %s, torch %s, %s', vitdense.__version__, torch.__version__, self.device)

    def dump_config(self) -> None:
        """Write the config of a training run, complete and with its work directory, as `config.py`."""
        if self.rank == 0 and self.schedule is not None:
            text = config_text({**self.cfg.to_dict(), 'work_dir': str(self.folder)})
            self.config_written = try_write_text(self.folder / 'config.py', text)

    def train(self) -> nn.Module:
        """Train; signals are requests meanwhile, and whatever ends the run leaves the terminal as it was."""
        with obey_signals() as request:
            self.register_hook(PreemptionHook(request))
            try:
                model = super().train()
            finally:
                for hook in self.hooks:
                    if hasattr(hook, 'close'):
                        hook.close()
                close_loaders()
        if self.saving is not None and self.saving.failed is not None:
            raise self.saving.failed
        return model

    def state(self) -> dict[str, Any]:
        """Return the run between two steps, as a checkpoint holds it (see `vitdense.checkpoints.run`)."""
        loop = self.train_loop
        content = {
            'format': 1,
            'version': vitdense.__version__,
            'config': config_text(self.cfg),
            'seed': self.cfg.seed,
            'amp': self.precision.name,
            'step': loop.iter,
            'samples_seen': self.samples_seen_before
            + (loop.iter - self.first_step) * loop.dataloader.batch_size * self.world_size,
            'batch_size': loop.dataloader.batch_size,
            'world_size': self.world_size,
            'accumulative_counts': self.optim_wrapper._accumulative_counts,
            'validation_pending': loop.validation_pending,
            'classes': _plain(self.network_model.classes),
            'metainfo': _plain(self.metainfo),
            'omitted_weights': self.omitted,
            'parameter_groups': self._parameter_groups(),
            'state_dict': to_cpu(
                {name: value for name, value in self.network_model.state_dict().items() if name not in self.omitted}
            ),
            **to_cpu(self.optim_wrapper.state_dict()),
        }
        self.call_hook('before_save_checkpoint', checkpoint=content)
        return content

    def _parameter_groups(self) -> list[list[str]]:
        """Return the names of the parameters in each group of the optimizer."""
        names = {id(parameter): name for name, parameter in self.network_model.named_parameters()}
        groups = self.optim_wrapper.optimizer.param_groups
        return [[names[id(parameter)] for parameter in group['params']] for group in groups]

    @cached_property
    def omitted(self) -> dict[str, list[float]]:
        """Tensors of the model that checkpoints leave out (see `vitdense.checkpoints.omitted_weights`)."""
        return describe_omitted(self.network_model)

    @property
    def first_step(self) -> int:
        """The step at which this process began."""
        return self.checkpoint['step'] if self.checkpoint else 0

    @property
    def samples_seen_before(self) -> int:
        """How many samples had been drawn by then, by all ranks."""
        return self.checkpoint['samples_seen'] if self.checkpoint else 0

    def load_or_resume(self) -> None:
        """Go on from `checkpoint`, if there is one; called by mmengine once everything is built."""
        if self.checkpoint is None or self._has_loaded:
            return
        content = self.checkpoint
        self.network_model.load_state_dict({**content['state_dict'], **content.get('training_state_dict', {})})
        self.optim_wrapper.load_state_dict({key: content[key] for key in ('optimizer', 'scaler', 'counts')})
        self.train_loop._iter = content['step']
        self.train_loop.validation_pending = content['validation_pending']
        self.call_hook('after_load_checkpoint', checkpoint=content)
        self._has_loaded = True


def _plain(value: Any) -> Any:
    """Return metainfo as dicts, lists, words and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, 'tolist') else value
