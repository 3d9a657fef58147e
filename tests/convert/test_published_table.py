"""The table of published models: its configs describe them, and docs/models.md says the same."""

import pytest
import torch

from tests.convert.models_page import PAGE, page
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.load import load_config
from vitdense.config.locate import shipped_config
from vitdense.convert.architecture import classes_of
from vitdense.convert.families import COCO_IDS, FAMILIES
from vitdense.convert.peer_files import PeerInfo
from vitdense.convert.published_models import find_model, published_models
from vitdense.registry import build

ONE_OF_EACH = {model.family: model for model in published_models().values()}


def test_the_page_is_current():
    assert PAGE.read_text() == page(), 'run python -m tests.convert.models_page'


def test_every_row_can_be_fetched_and_described():
    for name, model in published_models().items():
        assert find_model(name.upper().replace('-', '_')) is model
        assert model.family in FAMILIES and shipped_config(model.config) is not None
        for file in model.all_files:
            assert bool(file.url) != bool(file.repo) and file.address.startswith('https://') and file.local_name
            assert all(set(digits) <= set('0123456789abcdef') for digits in file.hashes.values())
        assert len({file.local_name for file in model.all_files}) == len(model.all_files)
        assert (model.base is None) == (model.published.base is None)


@pytest.mark.parametrize('family', FAMILIES)
def test_parameters_and_classes_are_those_of_the_config(family):
    model = ONE_OF_EACH[family]
    cfg = load_config(shipped_config(model.config))
    rows = model.classes + model.published.other_rows
    state = {'network.class_head.bias': torch.zeros(rows), 'decode_head.conv_seg.bias': torch.zeros(rows)}
    metainfo, rows = classes_of(cfg, state, model.published, PeerInfo())
    names = next(iter(metainfo['classes'].values()))
    assert len(names) == len(rows) == model.classes and names[0] == ('person' if model.data == 'COCO' else 'wall')
    assert model.data != 'COCO' or metainfo['category_ids']['labels'] == list(COCO_IDS)
    with torch.device('meta'):
        network = build(without_pretrained(cfg.model), classes=metainfo['classes']).network
    assert sum(parameter.numel() for parameter in network.parameters()) == model.parameters
