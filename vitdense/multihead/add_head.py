"""Add a head to a trained model: backbone and old heads are frozen, the new head is trained.

The trained model brings backbone, heads and test-time strategy; of the config's `model` only the new branch, its task
and `augment` are read, so that the config of a single task will do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vitdense.checkpoints.descriptions import without_pretrained
from vitdense.checkpoints.limits import limit_tensors
from vitdense.checkpoints.model_folder import METAINFO
from vitdense.checkpoints.omitted_weights import restore_omitted
from vitdense.checkpoints.trained import Trained, read_trained
from vitdense.config.classes import field_of
from vitdense.config.load import image_recipe
from vitdense.config.run_config import RunConfig
from vitdense.distributed.batch_size import Batches
from vitdense.errors import CheckpointError, ConfigError, did_you_mean
from vitdense.model import DenseModel
from vitdense.multihead.merge import check_strategy, with_branch, with_classes
from vitdense.storage.weights import load_weights
from vitdense.train.start import FromCheckpoint, FromWeights, Start

logger = logging.getLogger('vitdense')


def requested_head(cfg: RunConfig, name: str | None, weights: str | None) -> tuple[RunConfig, str | None]:
    """Return the config with `--add-head NAME --weights PATH` as its `add_head`, and the `weights` left over.

    Raises ConfigError when the config has no such branch, or the trained model is not given.
    """
    section = cfg.get('add_head') or {}
    if name is None and not section:
        return cfg, weights
    section = {
        'name': name or section.get('name'),
        'weights': weights or section.get('weights'),
        'transforms': section.get('transforms'),
    }
    model = cfg.get('model') or {}
    branches = (model.get('network') or {}).get('branches') or {}
    if section['name'] not in branches or section['name'] not in model['tasks']:
        raise ConfigError(
            f"the config has no branch '{section['name']}'{did_you_mean(str(section['name']), branches)}",
            where=f'--add-head {section["name"]}, {cfg.filename}',
            why=f'its branches are: {", ".join(branches) or "none"}',
            fix='name the branch of model.network.branches that is to be added, and give it a task of the same name',
        )
    if not section['weights']:
        raise ConfigError(
            f"nothing says which trained model gets the head '{section['name']}'",
            where='--add-head',
            why='a head is added to a backbone that other heads read already',
            fix='add --weights WORK_DIR/model, or add_head = dict(name=..., weights=...) to the config',
        )
    return cfg.replaced(add_head=section), None


class AddedHead(Start):
    """A run that trains one new head on a trained model; `checkpoint` is that of such a run which is resumed."""

    def __init__(self, weights: str | Path, checkpoint: Mapping[str, Any] | None = None) -> None:
        self.trained = read_trained(weights)
        self.inner = Start() if checkpoint is None else FromCheckpoint(checkpoint)

    @property
    def checkpoint(self) -> Mapping[str, Any] | None:
        return self.inner.checkpoint

    def config(self, cfg: RunConfig) -> RunConfig:
        return with_head(cfg, self.trained)

    def metainfo(self, cfg: RunConfig, metainfo: Mapping[str, Any]) -> dict[str, Any]:
        return joint_metainfo(cfg, self.trained, metainfo)

    def model(self, cfg: RunConfig, metainfo: Mapping[str, Any], batches: Batches) -> tuple[DenseModel, RunConfig]:
        """Return the model, of which only the new head is trained; no more of it is built than its weights justify."""
        described = self.checkpoint is None and self.trained.recipe is not None
        with limit_tensors(self.trained.state, Path(self.trained.where), new=True) if described else nullcontext():
            model, cfg = self.inner.model(cfg, metainfo, batches)
        take_over(model, cfg, self.trained, load=self.checkpoint is None)
        return model, cfg

    def check(self, cfg: RunConfig, model: DenseModel) -> None:
        self.inner.check(cfg, model)


def choose_start(
    cfg: RunConfig, *, weights: str | Path | None = None, checkpoint: Mapping[str, Any] | None = None
) -> Start:
    """Return what a run of the config begins with: `checkpoint` to go on from, the model that gets the head of
    `cfg.add_head`, or `weights`, which may be those of `cfg.keep_classes`; a run from scratch where there is none.
    """
    if cfg.get('add_head'):
        return AddedHead(cfg.add_head.weights, checkpoint)
    if checkpoint is not None:
        return FromCheckpoint(checkpoint)
    if weights is None and cfg.get('keep_classes'):
        weights = cfg.keep_classes.weights
    return Start() if weights is None else FromWeights(weights)


def with_head(cfg: RunConfig, trained: Trained) -> RunConfig:
    """Return the config with the model that is trained: all of `trained`, and the branch that `cfg.add_head` names.

    Raises ConfigError when the trained model has a head of that name, or cannot have one.
    """
    name, model = cfg.add_head.name, cfg.model
    transforms = image_recipe(cfg)['transforms']
    if trained.recipe is not None:
        where = f'--add-head {name}, {trained.where}'
        branch, task = model['network']['branches'][name], model['tasks'][name]
        if trained.transforms is not None:
            check_strategy(name, transforms, model.get('tiler'), trained.transforms, trained.recipe.get('tiler'))
        augment = {'augment': model['augment']} if model.get('augment') else {}
        recipe = _with_pretrained(trained, model) if trained.omitted else trained.recipe
        model = with_branch(recipe, name, branch, task, where=where) | augment
        transforms = trained.transforms
    else:
        model = without_pretrained(model)  # the file holds all weights
    return cfg.replaced(model=model, add_head={**cfg.add_head, 'transforms': transforms})


def _with_pretrained(trained: Trained, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a model that builds on pretrained weights, with those that the config names: a checkpoint
    never says where to look for any. Raises CheckpointError when the config names none.
    """
    backbone, theirs = model['network'].get('backbone') or {}, trained.recipe['network'].get('backbone') or {}
    pretrained = backbone.get('vit', backbone).get('pretrained')
    if not pretrained:
        raise CheckpointError(
            f'the checkpoint builds on {len(trained.omitted)} pretrained tensors that it does not hold',
            where=trained.where,
            why='LoRA checkpoints hold only what was trained; the file itself may not name where the other weights are',
            fix='give the folder model/ of that run, which holds everything; or set\n'
            'model.network.backbone.pretrained in the config to the weights that it was trained from',
        )
    inner = {**theirs.get('vit', theirs), 'pretrained': pretrained}
    whole = {**theirs, 'vit': inner} if 'vit' in theirs else inner
    return {**trained.recipe, 'network': {**trained.recipe['network'], 'backbone': whole}}


def joint_metainfo(cfg: RunConfig, trained: Trained, metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """Return `metainfo` of the new head's data with the classes of the trained heads.

    Raises ConfigError when both name other classes of a field that is read already.
    """
    if not trained.metainfo:
        return dict(metainfo)
    fields = {name: field_of(task) for name, task in cfg.model.tasks.items()}
    added = fields.pop(cfg.add_head.name)
    known = {key: (metainfo.get(key) or {}).get(added) for key in METAINFO}
    old = {key: dict(trained.metainfo.get(key) or {}) for key in METAINFO}
    joint = with_classes(old, set(fields.values()), added, known, where=f'--add-head {cfg.add_head.name}')
    return {**metainfo, **joint}


def take_over(model: DenseModel, cfg: RunConfig, trained: Trained, *, load: bool) -> None:
    """Give a model the weights of the trained one, unless a resumed run has them (`load` False), and freeze those.

    Raises CheckpointError when anything but the new head is missing.
    """
    name = cfg.add_head.name
    if load:
        state = restore_omitted(trained.state, trained.omitted, model, where=trained.where)
        if trained.recipe is not None:
            state = {key: value for key, value in state.items() if key.startswith('network.')}
        load_weights(model, state, where=trained.where, partial=[name])
    model.network.freeze_except(name)
    others = [other for other in model.network.names if other != name]
    logger.info("the head '%s' is trained; the backbone and %s are frozen", name, ', '.join(others) or 'nothing else')
