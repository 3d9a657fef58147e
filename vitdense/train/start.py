"""The ways in which a training run begins: from scratch, with weights, or from a checkpoint.

A trained model that gets another head is the fourth (`vitdense.multihead.add_head.AddedHead`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitdense.checkpoints.class_rows import FIX, joint_metainfo_of, transfer_class_rows
from vitdense.checkpoints.image_sizes import pretrained_sizes, resample_sizes, sizes_in, with_sizes
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.checkpoints.omitted_weights import needs_pretrained, restore_omitted
from vitdense.checkpoints.trained import read_state
from vitdense.config.class_counts import check_class_counts
from vitdense.config.from_text import model_in
from vitdense.config.run_config import RunConfig
from vitdense.distributed.batch_size import Batches
from vitdense.errors import ConfigError
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.storage.weights import load_weights
from vitdense.train.resume import check_config, check_resumable, with_run


def build_model(cfg: RunConfig, metainfo: Mapping[str, Any], *, pretrained: bool) -> DenseModel:
    """Return the config's model for data with this metainfo; without `pretrained` its parts load no weights."""
    check_class_counts(cfg, metainfo)
    return build(cfg.model if pretrained else without_pretrained(cfg.model), classes=metainfo['classes'])


class Start:
    """A run from scratch: with random and pretrained weights, as the config says.

    `checkpoint` is the content of the checkpoint to go on from, where there is one.
    """

    checkpoint: Mapping[str, Any] | None = None

    def config(self, cfg: RunConfig) -> RunConfig:
        """Return the config of what is trained, from that of the config file. Raises ConfigError for `add_head`."""
        if cfg.get('add_head'):
            raise ConfigError(
                'the config adds a head to a trained model',
                where='add_head',
                why=f'{type(self).__name__} does not read that model',
                fix='begin with start=choose_start(cfg) of vitdense.multihead.add_head, or remove add_head',
            )
        return cfg

    def metainfo(self, cfg: RunConfig, metainfo: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metainfo of the model, from that of the training data."""
        return dict(metainfo)

    def model(self, cfg: RunConfig, metainfo: Mapping[str, Any], batches: Batches) -> tuple[DenseModel, RunConfig]:
        """Return the model, and the config with the image sizes that files of weights decided."""
        model = build_model(cfg, metainfo, pretrained=True)
        return model, _with_model(cfg, with_sizes(cfg.model, pretrained_sizes(model), override=True))

    def check(self, cfg: RunConfig, model: DenseModel) -> None:
        """Raise ConfigError where the optimizer of the config cannot train the model from here."""


class FromWeights(Start):
    """A run that begins with a file of weights of the whole model. Raises CheckpointError."""

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        self.state, self.stored = read_state(path)

    def metainfo(self, cfg: RunConfig, metainfo: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metainfo of the model: with `keep_classes` it has the classes of the file ahead of the data's."""
        if not cfg.get('keep_classes'):
            return dict(metainfo)
        known = self.stored.get('metainfo') or {}
        if not any((known.get('classes') or {}).get(field) for field in metainfo['classes']):
            raise ConfigError(
                'the weights do not say which classes are to be kept',
                where=f'keep_classes, {self.where}',
                why='a file of weights does not name its classes',
                fix='give a model folder or a checkpoint of a run, which hold the names',
            )
        return joint_metainfo_of(known, metainfo)

    def model(self, cfg: RunConfig, metainfo: Mapping[str, Any], batches: Batches) -> tuple[DenseModel, RunConfig]:
        """Return the model with the weights; its classes may be others than those of the file, and the sizes of patches
        and images where the config gives them.

        Raises CheckpointError when anything but rows of classes is missing, left over or of another shape.
        """
        sizes = self.stored.get('sizes', {})
        model, cfg = super().model(_with_model(cfg, with_sizes(cfg.model, sizes)), metainfo, batches)
        state: Mapping[str, Tensor] = self.state
        state = restore_omitted(state, self.stored.get('omitted_weights'), model, where=self.where)
        state = resample_sizes(model, state, sizes)
        trained_classes = (self.stored.get('metainfo') or {}).get('classes') or {}
        state = transfer_class_rows(model, state, trained_classes, where=self.where)
        load_weights(model, state, where=self.where, fix=FIX)
        return model, cfg


class FromCheckpoint(Start):
    """A run that is resumed from the content of a checkpoint. The trainer loads its state."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint

    def metainfo(self, cfg: RunConfig, metainfo: Mapping[str, Any]) -> dict[str, Any]:
        known = self.checkpoint.get('metainfo') or {}
        return joint_metainfo_of(known, metainfo) if cfg.get('keep_classes') else dict(metainfo)

    def model(self, cfg: RunConfig, metainfo: Mapping[str, Any], batches: Batches) -> tuple[DenseModel, RunConfig]:
        """Return the model; `checkpoint` then holds all of its weights. Raises ConfigError for another model."""
        omitted = self.checkpoint.get('omitted_weights')
        cfg = _with_model(cfg, with_sizes(cfg.model, sizes_in(model_in(self.checkpoint))))
        model = build_model(cfg, metainfo, pretrained=needs_pretrained(cfg.model, omitted))
        state = restore_omitted(self.checkpoint['state_dict'], omitted, model, where='--resume')
        self.checkpoint = {**with_run(self.checkpoint, model, batches), 'state_dict': state}
        check_resumable(self.checkpoint, model, batches)
        return model, cfg

    def check(self, cfg: RunConfig, model: DenseModel) -> None:
        check_config(self.checkpoint, cfg, model)


def _with_model(cfg: RunConfig, recipe: Mapping[str, Any]) -> RunConfig:
    """Return the config with another model recipe; the same one where it has that."""
    return cfg if cfg.model == recipe else cfg.replaced(model=recipe)
