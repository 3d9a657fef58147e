"""Check a config without training: build everything, and run one batch."""

from __future__ import annotations

import logging
import tempfile
import time
from typing import Any

import torch

from vitdense.commands.memory import check_fit
from vitdense.config.kept_classes import with_kept_classes
from vitdense.config.run_config import RunConfig
from vitdense.device import peak_memory
from vitdense.loading.loaders import close_loaders
from vitdense.multihead.add_head import choose_start, requested_head
from vitdense.reporting.console import console, start_logging
from vitdense.train.build import make_trainer
from vitdense.train.compile import explained


def dry_run(
    cfg: RunConfig,
    *,
    weights: str | None = None,
    add_head: str | None = None,
    keep_classes: bool = False,
    device: str | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Build everything, train a worst-case step and a usual one, predict one validation batch; print time and memory.

    Nothing is kept. Raises ResourceError with what to change where the worst case does not fit into memory.
    """
    cfg, weights = requested_head(cfg, add_head, weights)
    cfg = with_kept_classes(cfg, keep_classes, weights)
    start_logging(None)
    with tempfile.TemporaryDirectory(prefix='vitdense-') as folder:
        start = time.perf_counter()
        runner = make_trainer(cfg, folder, start=choose_start(cfg, weights=weights), device=device, compiled=compiled)
        logging.getLogger(runner.experiment_name).handlers.clear()
        wrapper = runner.optim_wrapper
        wrapper.initialize_count_status(runner.model, 0, 1)
        with explained():
            check_fit(runner, wrapper)
        wrapper.initialize_count_status(runner.model, 0, 1)
        built = time.perf_counter()
        runner.model.train()
        with explained():
            losses = runner.model.train_step(next(iter(runner.train_dataloader)), wrapper)
        times = {'build and worst case': built - start, 'training step': time.perf_counter() - built}
        if runner.val_loop is not None:
            began = time.perf_counter()
            runner.model.eval()
            batch = next(iter(runner.val_dataloader))
            with torch.no_grad():
                runner.val_evaluator.process(runner.model.val_step(batch), batch)
            times['validation batch'] = time.perf_counter() - began
        words = ', '.join(f'{name} {seconds:.2f} s' for name, seconds in times.items())
        values = {key: float(value.detach()) for key, value in losses.items()}
        console().print(f'dry run: loss {values["loss"]:.4f}; {words}; at most {peak_memory(runner.device)}')
        close_loaders()
        return {'losses': values, 'seconds': times}
