"""The weights that a training run begins with: pretrained ones, those of a trained model, or those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from vitdense.checkpoints.class_rows import FIX, transfer_class_rows
from vitdense.checkpoints.image_sizes import pretrained_sizes, sizes_in, with_sizes
from vitdense.checkpoints.limits import limit_tensors
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.checkpoints.omitted_weights import needs_pretrained, restore_omitted
from vitdense.config.from_text import model_in
from vitdense.model import DenseModel
from vitdense.multihead.add_head import Trained
from vitdense.registry import build
from vitdense.storage.weights import load_weights
from vitdense.train.batch_size import Batches
from vitdense.train.class_counts import check_class_counts
from vitdense.train.resume import check_resumable


def build_model(cfg: Config, metainfo: Mapping[str, Any], *, pretrained: bool) -> DenseModel:
    """Return the config's model for data with this metainfo; without `pretrained` its parts load no weights."""
    check_class_counts(cfg, metainfo)
    recipe = cfg.to_dict()['model']
    return build(recipe if pretrained else without_pretrained(recipe), classes=metainfo['classes'])


def new_model(cfg: Config, metainfo: Mapping[str, Any], trained: Trained | None) -> tuple[DenseModel, Config]:
    """Return the model of a run that begins, and the config with the sizes that a pretrained file decided.

    Of a `trained` model that gets a head, only as much is built as its weights justify.
    """
    described = trained is not None and trained.recipe is not None
    with limit_tensors(trained.state, Path(trained.where), new=True) if described else nullcontext():
        model = build_model(cfg, metainfo, pretrained=True)
    return model, _with_model(cfg, with_sizes(cfg.to_dict()['model'], pretrained_sizes(model), override=True))


def resumed_model(
    cfg: Config, metainfo: Mapping[str, Any], checkpoint: Mapping[str, Any], batches: Batches
) -> tuple[DenseModel, Config, Mapping[str, Any]]:
    """Return the model of a run that goes on, its config, and the checkpoint with all weights of the model in it."""
    omitted = checkpoint.get('omitted_weights')
    cfg = _with_model(cfg, with_sizes(cfg.to_dict()['model'], sizes_in(model_in(checkpoint))))
    model = build_model(cfg, metainfo, pretrained=needs_pretrained(cfg.to_dict()['model'], omitted))
    whole = {**checkpoint, 'state_dict': restore_omitted(checkpoint['state_dict'], omitted, model, where='--resume')}
    check_resumable(whole, model, batches)
    return model, cfg, whole


def begin_with(model: DenseModel, state: Mapping[str, Tensor], facts: Mapping[str, Any], *, where: str) -> None:
    """Give a model the weights that `read_state` found at `where`; only its classes may be others.

    Raises CheckpointError when anything but rows of classes is missing, left over or of another shape.
    """
    whole = restore_omitted(state, facts.get('omitted_weights'), model, where=where)
    trained_classes = (facts.get('metainfo') or {}).get('classes') or {}
    load_weights(model, transfer_class_rows(model, whole, trained_classes, where=where), where=where, fix=FIX)


def _with_model(cfg: Config, recipe: Mapping[str, Any]) -> Config:
    """Return the config with another model recipe; the same one where it has that."""
    content = cfg.to_dict()
    if content['model'] == recipe:
        return cfg
    made = Config({**content, 'model': recipe})
    object.__setattr__(made, '_filename', cfg.filename)
    return made
