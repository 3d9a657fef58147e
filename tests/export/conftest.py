"""A small three-task model, as a folder and as an ONNX graph of free sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vitdense.checkpoints.model_folder import save_model_folder
from vitdense.config.load import load_config
from vitdense.export.folder import export_model
from vitdense.model import DenseModel
from vitdense.registry import build

CLASSES = {'labels': ['circle', 'square', 'triangle'], 'semantic': ['ground', 'circle', 'square', 'triangle']}
CLASSES |= {'image_label': ['one', 'two', 'three']}
SMALL = ('model.network.backbone.timm_args.embed_dim=24', 'model.network.backbone.timm_args.depth=2')
RESIZE = [{'type': 'vitdense.data.transforms.common.ResizeTo', 'size': 64}]


@pytest.fixture(scope='session')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small three-task model whose layers have different outputs for different images."""
    torch.manual_seed(0)
    recipe = load_config('configs/quickstart/shapes.py', SMALL)['model']
    recipe = json.loads(json.dumps(recipe))
    model: DenseModel = build(recipe, classes=CLASSES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    folder = tmp_path_factory.mktemp('source') / 'model'
    save_model_folder(folder, recipe, model.state_dict(), metainfo={'classes': CLASSES}, transforms=RESIZE)
    return folder


@pytest.fixture(scope='session')
def exported(source: Path) -> Path:
    """Its exported folder."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    out = source.parent / 'exported'
    export_model(source, out, dynamic=('batch', 'size'))
    return out


@pytest.fixture
def images() -> list[torch.Tensor]:
    """Three images of noise."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 255, (3, 50 + 8 * row, 70), dtype=torch.uint8, generator=generator) for row in range(3)]
