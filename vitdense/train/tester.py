"""From a config and a checkpoint to a runner that tests."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdense.arguments import check
from vitdense.checkpoints.image_sizes import with_sizes
from vitdense.checkpoints.model_folder import build_trained, reads_classifier
from vitdense.checkpoints.trained import read_state
from vitdense.config.load import named_sections
from vitdense.config.run_config import RunConfig
from vitdense.data.class_names import check_classes
from vitdense.data.datasets import JoinedDatasets, share_classes
from vitdense.distributed.processes import this_process
from vitdense.loading.data_checks import (
    log_data,
    log_metric_limits,
    log_query_limits,
)
from vitdense.loading.evaluation_sets import build_evaluators, evaluation_parts
from vitdense.loading.run_data import evaluation_data, required_sections
from vitdense.model import DenseModel
from vitdense.train.build import set_up
from vitdense.train.evaluation import EvaluationLoop
from vitdense.train.runner import DenseRunner
from vitdense.train.seeding import seed_everything
from vitdense.train.start import build_model

logger = logging.getLogger('vitdense')


def make_tester(
    cfg: RunConfig,
    work_dir: str | Path,
    checkpoint: str | Path | None,
    *,
    device: str | None = None,
    tta: bool = False,
    compiled: bool = False,
    skip_bad_eval: bool = False,
    hooks: tuple = (),
    trained: tuple[DenseModel, Mapping[str, Any]] | None = None,
) -> DenseRunner:
    """Return a runner whose `test()` evaluates the weights of `checkpoint` on the config's test data.

    Without a checkpoint the model is tested as it was published: every head must take the classifier of the backbone's
    checkpoint over. `tta` turns the model's test-time augmentation on, `compiled` compiles the network,
    `skip_bad_eval` leaves unreadable images out. `trained` is a model that is built already, with its metainfo, in
    place of a checkpoint. Raises ConfigError, CheckpointError, ResourceError.
    """
    process = this_process(work_dir, device)
    state, stored = _stored(cfg, checkpoint) if trained is None else ({}, {'metainfo': trained[1]})
    seed_everything(cfg.seed)
    section = required_sections(cfg, 'test_dataloader')['test_dataloader']
    datasets = evaluation_data(cfg, section)
    metainfo = stored.get('metainfo') or JoinedDatasets(list(datasets.values())).metainfo
    for dataset in datasets.values():
        share_classes(dataset, metainfo)
        check_classes(metainfo, dataset.metainfo, where=f'{checkpoint}, test_dataloader.dataset')
    log_data({f'test {name}'.strip(): dataset for name, dataset in datasets.items()})
    model = _tested_model(cfg, metainfo, checkpoint, state, stored) if trained is None else trained[0]
    _set_augmentation(model, tta)
    set_up(model, cfg.amp, process, next(iter(named_sections(section).values())), compiled)
    evaluators = build_evaluators(cfg.get('test_evaluator'))
    for name, dataset in datasets.items():
        log_query_limits(model, dataset, name=f'test {name}'.strip())
    log_metric_limits(datasets, evaluators, name='test')
    loading = dict(seed=cfg.seed, skip_bad=skip_bad_eval, **process.loading)
    loader, evaluator = evaluation_parts(section, datasets, evaluators, **loading)
    return DenseRunner(
        cfg,
        model,
        process=process,
        metainfo=JoinedDatasets(list(datasets.values())).metainfo,
        hooks=hooks,
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type=EvaluationLoop, mode='test'),
    )


def _stored(cfg: RunConfig, checkpoint: str | Path | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the weights of a checkpoint, and what is stored beside them."""
    if checkpoint is None:
        _check_published(cfg)
        return {}, {}
    return read_state(checkpoint)


def _tested_model(
    cfg: RunConfig,
    metainfo: Mapping[str, Any],
    checkpoint: str | Path | None,
    state: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> DenseModel:
    """Return the model with the weights `state` of the checkpoint; without one, with those of its pretrained parts."""
    if checkpoint is None:
        logger.info('as published')
        return build_model(cfg, metainfo, pretrained=True)
    recipe, omitted = with_sizes(cfg.model, stored.get('sizes', {})), stored.get('omitted_weights')
    model = build_trained(recipe, metainfo['classes'], state, where=str(checkpoint), omitted=omitted)
    step = f' after step {stored["step"]}' if 'step' in stored else ''
    logger.info('%s%s%s', checkpoint, step, ', averaged weights' if stored.get('averaged') else '')
    return model


def _set_augmentation(model: DenseModel, tta: bool) -> None:
    scales = 'scales=(0.75, 1.0, 1.25)'
    fix = f'set model.tta = dict(type=TestTimeAugmentation, {scales}) in the config; or\n'
    fix += f'--cfg-options "+model.tta=dict(type=\'vitdense.test_time.tta.TestTimeAugmentation\', {scales})"'
    why = 'the config does not say at which scales --tta averages'
    check(not tta or model.tta is not None, 'model.tta', model.tta, why, fix)
    model.use_tta = tta


def _check_published(cfg: RunConfig) -> None:
    """Raise ConfigError when the parts of the model do not bring all weights."""
    why = 'a head of this model is random until it is trained'
    fix = 'name the checkpoint behind the config: a .pth of a run, a model folder or a file of weights'
    check(reads_classifier(cfg.model), 'CHECKPOINT', None, why, fix)
