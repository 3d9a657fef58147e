"""A trained model from a config and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdense.checkpoints.descriptions import without_pretrained
from vitdense.checkpoints.image_sizes import with_sizes
from vitdense.checkpoints.model_folder import build_trained
from vitdense.checkpoints.omitted_weights import without_lora
from vitdense.checkpoints.trained import read_state
from vitdense.config.load import image_recipe, load_config, named_sections
from vitdense.layers.lora import merge_lora
from vitdense.model import DenseModel


def read_checkpoint_model(config: str | Path, checkpoint: str | Path) -> tuple[DenseModel, dict[str, Any]]:
    """Return the model of a config file with the weights of a checkpoint, and the same description as
    `read_model_folder`.

    `checkpoint` is a .pth of a run, a model folder, or weights (.safetensors, .pth) of the whole model. Classes are
    those stored in the checkpoint, else those of the config's test data. Raises ConfigError, CheckpointError.
    """
    from vitdense.data.datasets import JoinedDatasets, build_dataset

    cfg = load_config(config)
    state, stored = read_state(checkpoint)
    metainfo = stored.get('metainfo')
    if not metainfo:
        section = cfg.get('test_dataloader') or cfg.get('val_dataloader') or cfg['train_dataloader']
        datasets = [
            build_dataset(each['dataset'], root=cfg.get('data_root')) for each in named_sections(section).values()
        ]
        metainfo = JoinedDatasets(datasets).metainfo
    recipe = with_sizes(cfg.model, stored.get('sizes', {}))
    omitted = stored.get('omitted_weights')
    model = build_trained(recipe, metainfo['classes'], state, where=str(checkpoint), omitted=omitted)
    merge_lora(model)
    data = image_recipe(cfg)
    return model, {
        'recipe': without_lora(without_pretrained(recipe)),
        'classes': metainfo['classes'],
        'palette': metainfo.get('palette', {}),
        'category_ids': metainfo.get('category_ids', {}),
        'transforms': data['transforms'],
        'value_range': data.get('value_range'),
    }
