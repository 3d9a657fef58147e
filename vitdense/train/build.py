"""From a config to a runner: data first, then the model that fits it, then everything that moves it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch.utils.data import Dataset

from vitdense.checkpoints.image_sizes import with_sizes
from vitdense.checkpoints.model_folder import build_trained, read_state, reads_classifier
from vitdense.config.load import named_sections
from vitdense.data.class_names import check_classes
from vitdense.data.datasets import JoinedDatasets, build_dataset, share_classes
from vitdense.data.mixture import check_labels
from vitdense.device import Precision, choose_device, choose_precision, torch_threads
from vitdense.errors import ConfigError
from vitdense.model import DenseModel
from vitdense.multihead.add_head import joint_metainfo, read_trained, take_over, with_head
from vitdense.registry import build
from vitdense.reporting.history import HistoryHook, check_metric_early
from vitdense.reporting.progress import ProgressHook
from vitdense.reporting.run_images import ImageHook
from vitdense.reporting.trackers import TrackerHook
from vitdense.storage.atomic import make_folder
from vitdense.train import start as starting
from vitdense.train.batch_size import Batches, describe_rate, share_batches
from vitdense.train.compile import compile_network
from vitdense.train.data_checks import (
    compare_ranges,
    log_data,
    log_metric_limits,
    log_query_limits,
    max_bad_fraction,
    refuse_missing,
)
from vitdense.train.ema import EmaHook
from vitdense.train.evaluation_sets import all_metrics, build_evaluators, evaluation_parts
from vitdense.train.hooks import CheckpointHook, EarlyStoppingHook, StepHook
from vitdense.train.loaders import num_workers, train_loader
from vitdense.train.loops import EvaluationLoop, IterationLoop
from vitdense.train.processes import seed_everything, start_processes
from vitdense.train.resume import check_config
from vitdense.train.runner import DenseRunner
from vitdense.train.schedule import Schedule, make_schedule

logger = logging.getLogger('vitdense')


def make_trainer(
    cfg: Config,
    work_dir: str | Path,
    *,
    device: str | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    compiled: bool = False,
    skip_bad_eval: bool = False,
    clear: Callable[[], None] | None = None,
) -> DenseRunner:
    """Return a runner whose `train()` runs the config in `work_dir`.

    `checkpoint` is the content of a checkpoint to go on from; `weights` a file of weights of the whole model to begin
    with. `device` defaults to the first GPU, else the CPU. Under torchrun every process makes its own runner.
    `compiled` compiles the network. `skip_bad_eval` leaves unreadable images out of validations. `clear` is called when
    all parts fit each other, before the first file is written.

    Raises ConfigError when parts do not fit each other, ResourceError where nothing can be compiled, before anything is
    trained.
    """
    place = _place(work_dir, device)
    seed_everything(cfg.seed)
    trained = read_trained(cfg.add_head.weights) if cfg.get('add_head') else None
    cfg = cfg if trained is None else with_head(cfg, trained)
    begin = read_state(weights) if weights is not None else ({}, {})
    sections = _sections(cfg, 'train_dataloader', 'val_dataloader')
    data = _training_data(cfg, sections)
    batches = _shared_batches(cfg, sections['train_dataloader'], place)
    per_epoch = -(-len(data['train_dataloader']) // batches.total)
    schedule = _schedule(cfg, per_epoch)
    evaluators = build_evaluators(cfg.to_dict().get('val_evaluator')) if len(data) > 1 else {}
    hooks = _hooks(cfg, schedule, place.work_dir, all_metrics(evaluators), per_epoch)

    seed_everything(cfg.seed)
    metainfo = data['train_dataloader'].metainfo
    metainfo = metainfo if trained is None else joint_metainfo(cfg, trained, metainfo)
    if checkpoint is None:
        model, cfg = starting.new_model(cfg, metainfo, trained)
    else:
        model, cfg, checkpoint = starting.resumed_model(cfg, metainfo, checkpoint, batches)
    log_query_limits(model, data['train_dataloader'], name='training')
    log_metric_limits(data.get('val_dataloader', {}), evaluators, name='validation')
    if weights is not None:
        starting.begin_with(model, *begin, where=str(weights))
    if trained is not None:
        take_over(model, cfg, trained, load=checkpoint is None)
    if checkpoint is not None:
        check_config(checkpoint, cfg, model)
    # a probe may decide differently next time: a resumed run keeps to what was chosen
    amp = checkpoint['amp'] if checkpoint is not None and cfg.amp == 'auto' else cfg.amp
    precision = _set_up(model, amp, place, sections['train_dataloader'], compiled)
    logger.info(describe_rate(batches, cfg.optim_wrapper.optimizer.get('lr')))
    samples_seen = checkpoint['samples_seen'] if checkpoint is not None else 0
    parts = _training_parts(cfg, sections, data, place, schedule, samples_seen=samples_seen)
    parts |= _validation_parts(cfg, sections, data, place, evaluators, skip_bad_eval)
    if clear is not None:
        clear()
    return DenseRunner(
        cfg,
        model,
        work_dir=place.work_dir,
        device=place.device,
        metainfo=metainfo,
        hooks=hooks,
        schedule=schedule,
        precision=precision,
        checkpoint=checkpoint,
        **parts,
    )


class _Place(NamedTuple):
    """Where a process computes."""

    work_dir: Path
    device: torch.device
    rank: int
    world_size: int

    @property
    def loading(self) -> dict[str, Any]:
        """What loaders need to know about it."""
        return dict(rank=self.rank, world_size=self.world_size, pin_memory=self.device.type == 'cuda')


def _place(work_dir: str | Path, device: str | None) -> _Place:
    work_dir = Path(work_dir)
    make_folder(work_dir)
    chosen = choose_device(device)
    return _Place(work_dir, chosen, *start_processes(chosen))


def _shared_batches(cfg: Config, section: dict[str, Any], place: _Place) -> Batches:
    """Return the batches of the run; the training `section` gets the share of this process. Raises ConfigError."""
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batches = share_batches(section.get('batch_size', 1), accumulated, place.world_size)
    section['batch_size'] = batches.share
    return batches


def _set_up(model: DenseModel, amp: str, place: _Place, section: Mapping[str, Any], compiled: bool) -> Precision:
    """Set precision, threads and compilation, and say so."""
    precision = choose_precision(amp, place.device)
    model.amp = precision.dtype
    threads = torch_threads(num_workers(section), processes=place.world_size)
    torch.set_num_threads(threads)
    logger.info('%s, %s, %d torch threads; results in %s', place.device, precision.reason, threads, place.work_dir)
    if compiled:
        compile_network(model.to(place.device), place.device)
    return precision


def _training_parts(
    cfg: Config,
    sections: Mapping[str, Any],
    data: Mapping[str, Any],
    place: _Place,
    schedule: Schedule,
    *,
    samples_seen: int,
) -> dict[str, Any]:
    return dict(
        train_dataloader=train_loader(
            sections['train_dataloader'],
            data['train_dataloader'],
            seed=cfg.seed,
            start=samples_seen // place.world_size,
            **place.loading,
        ),
        train_cfg=dict(type=IterationLoop, max_iters=schedule.max_iters, val_interval=schedule.val_interval),
        optim_wrapper=cfg.to_dict()['optim_wrapper'],
    )


def _validation_parts(
    cfg: Config,
    sections: Mapping[str, Any],
    data: Mapping[str, Any],
    place: _Place,
    evaluators: Mapping[str, Sequence[Any]],
    skip_bad: bool,
) -> dict[str, Any]:
    if 'val_dataloader' not in data:
        return {}
    section, datasets = sections['val_dataloader'], data['val_dataloader']
    loading = dict(seed=cfg.seed, skip_bad=skip_bad, **place.loading)
    loader, evaluator = evaluation_parts(section, datasets, evaluators, **loading)
    return dict(val_dataloader=loader, val_evaluator=evaluator, val_cfg=dict(type=EvaluationLoop, mode='val'))


def make_tester(
    cfg: Config,
    work_dir: str | Path,
    checkpoint: str | Path | None,
    *,
    device: str | None = None,
    tta: bool = False,
    compiled: bool = False,
    skip_bad_eval: bool = False,
    hooks: tuple = (),
) -> DenseRunner:
    """Return a runner whose `test()` evaluates the weights of `checkpoint` on the config's test data.

    Without a checkpoint the model is tested as it was published: every head must take the classifier of the backbone's
    checkpoint over. `tta` turns the model's test-time augmentation on, `compiled` compiles the network,
    `skip_bad_eval` leaves unreadable images out. Raises ConfigError, CheckpointError, ResourceError.
    """
    place = _place(work_dir, device)
    state, facts = _published(cfg) if checkpoint is None else read_state(checkpoint)
    seed_everything(cfg.seed)
    section = _sections(cfg, 'test_dataloader')['test_dataloader']
    datasets = _evaluation_data(cfg, section)
    metainfo = facts.get('metainfo') or JoinedDatasets(list(datasets.values())).metainfo
    for dataset in datasets.values():
        share_classes(dataset, metainfo)
        check_classes(metainfo, dataset.metainfo, where=f'{checkpoint}, test_dataloader.dataset')
    log_data({f'test {name}'.strip(): dataset for name, dataset in datasets.items()})
    if checkpoint is None:
        model = starting.build_model(cfg, metainfo, pretrained=True)
    else:
        recipe, omitted = with_sizes(cfg.to_dict()['model'], facts.get('sizes', {})), facts.get('omitted_weights')
        model = build_trained(recipe, metainfo['classes'], state, where=str(checkpoint), omitted=omitted)
    if tta and model.tta is None:
        raise ConfigError(
            '--tta: the model has no test-time augmentation',
            where='model.tta',
            why='the config does not say at which scales',
            fix='set model.tta = dict(type=TestTimeAugmentation, scales=(0.75, 1.0, 1.25)) in the config; or\n'
            "--cfg-options \"+model.tta=dict(type='vitdense.test_time.tta.TestTimeAugmentation', "
            'scales=(0.75, 1.0, 1.25))"',
        )
    model.use_tta = tta
    averaged = ', averaged weights' if facts.get('averaged') else ''
    logger.info(
        '%s%s%s', checkpoint or 'as published', f' after step {facts["step"]}' if 'step' in facts else '', averaged
    )
    _set_up(model, cfg.amp, place, next(iter(named_sections(section).values())), compiled)
    evaluators = build_evaluators(cfg.to_dict().get('test_evaluator'))
    for name, dataset in datasets.items():
        log_query_limits(model, dataset, name=f'test {name}'.strip())
    log_metric_limits(datasets, evaluators, name='test')
    loading = dict(seed=cfg.seed, skip_bad=skip_bad_eval, **place.loading)
    loader, evaluator = evaluation_parts(section, datasets, evaluators, **loading)
    return DenseRunner(
        cfg,
        model,
        work_dir=place.work_dir,
        device=place.device,
        metainfo=JoinedDatasets(list(datasets.values())).metainfo,
        hooks=hooks,
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type=EvaluationLoop, mode='test'),
    )


def _published(cfg: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return no weights and no facts. Raises ConfigError when the parts of the model do not bring all weights."""
    if not reads_classifier(cfg.to_dict()['model']):
        raise ConfigError(
            'no checkpoint is given',
            where='CHECKPOINT',
            why='a head of this model is random until it is trained',
            fix='name the checkpoint behind the config: a .pth of a run, a model folder or a file of weights',
        )
    return {}, {}


def _sections(cfg: Config, *names: str) -> dict[str, dict[str, Any]]:
    """Return loader sections as plain dicts. Raises ConfigError when the first is missing."""
    content = cfg.to_dict()
    for name in ('model', names[0]):
        if not content.get(name):
            raise ConfigError(
                f'the config has no {name}',
                where=str(cfg.filename),
                why='there is nothing to run without it',
                fix=f'add {name} = dict(...); configs/quickstart/shapes.py shows one',
            )
    return {name: content[name] for name in names if content.get(name)}


def _training_data(cfg: Config, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training data, and the validation data by set. Raises ConfigError when they disagree, DataError for
    impossible labels.
    """
    first = build_dataset(sections['train_dataloader']['dataset'], root=cfg.get('data_root'))
    others = _evaluation_data(cfg, sections['val_dataloader']) if 'val_dataloader' in sections else {}
    for other in others.values():
        share_classes(other, first.metainfo)
        check_classes(first.metainfo, other.metainfo, where='train_dataloader.dataset, val_dataloader.dataset')
    log_data({'training': first} | {f'validation {name}'.strip(): other for name, other in others.items()})
    refuse_missing(first, name='training', max_bad_fraction=max_bad_fraction(sections['train_dataloader']))
    for other in others.values():
        refuse_missing(other, name='validation')
    compare_ranges(first, {f'validation {name}'.strip(): other for name, other in others.items()})
    for dataset in (first, *others.values()):
        check_labels(dataset, training=dataset is first)  # a sample of the labels now, rather than a crash in an hour
    return {'train_dataloader': first} | ({'val_dataloader': others} if others else {})


def _evaluation_data(cfg: Config, section: Mapping[str, Any]) -> dict[str, Dataset]:
    """Return the data sets of a validation or test section by name."""
    named = named_sections(section).items()
    return {name: build_dataset(each['dataset'], root=cfg.get('data_root')) for name, each in named}


def _schedule(cfg: Config, per_epoch: int) -> Schedule:
    for name in ('schedule', 'optim_wrapper'):
        if not cfg.get(name):
            raise ConfigError(
                f'the config has no {name}',
                where=str(cfg.filename),
                why='training needs to know how long and how',
                fix=f'add {name} = dict(...); configs/quickstart/shapes.py shows one',
            )
    return make_schedule(**cfg.to_dict()['schedule'], steps_per_epoch=per_epoch)


def _hooks(cfg: Config, schedule: Schedule, work_dir: Path, evaluators: list[Any], per_epoch: int) -> list[Any]:
    """Return the hooks of a training run. Raises ConfigError for names of metrics that no evaluator gives."""
    saving = cfg.to_dict().get('checkpoint') or dict(interval=None, keep=2, best=None, rule='greater')
    best = saving['best'] if evaluators else None
    check_metric_early(best, evaluators, where='checkpoint.best')
    unit = 1 if cfg.schedule.max_epochs is None else per_epoch
    interval = saving['interval'] * unit if saving['interval'] else schedule.val_interval
    hooks = [
        StepHook(cfg.seed, schedule),
        HistoryHook(work_dir, interval=max(1, min(50, schedule.max_iters // 60)), best=best, rule=saving['rule']),
        ProgressHook(),
        TrackerHook(cfg.loggers, work_dir, cfg.to_dict()),
        CheckpointHook(interval=interval, keep=saving['keep']),
    ]
    if cfg.sample_images:
        hooks.append(ImageHook(work_dir, count=cfg.sample_images))
    if cfg.ema:
        hooks.append(EmaHook(**cfg.ema))
    if cfg.early_stopping:
        check_metric_early(cfg.early_stopping.monitor, evaluators, where='early_stopping.monitor')
        hooks.append(EarlyStoppingHook(**cfg.early_stopping))
    return hooks + [build(hook) for hook in cfg.to_dict()['custom_hooks']]
