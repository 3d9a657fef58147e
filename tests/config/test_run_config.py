"""A config that was read is plain data whose keys are attributes."""

import copy
import pickle

import pytest

from vitdense.config.run_config import RunConfig


def test_a_config_is_a_dict_with_attributes():
    cfg = RunConfig({'model': {'heads': [{'type': 'a'}], 'sizes': (1, {'b': 2})}, 'seed': 0}, 'a.py')
    assert cfg == {'model': {'heads': [{'type': 'a'}], 'sizes': (1, {'b': 2})}, 'seed': 0} and isinstance(cfg, dict)
    assert cfg.model.heads[0].type == 'a' and cfg.model.sizes[1].b == 2 and cfg.filename == 'a.py'
    with pytest.raises(AttributeError, match='ema'):
        cfg.ema  # noqa: B018
    cfg.model.depth = 3
    assert cfg['model']['depth'] == 3


def test_another_section_leaves_the_config_as_it_was():
    cfg = RunConfig({'model': {'a': 1}, 'seed': 0}, 'a.py')
    other = cfg.replaced(model={'b': {'c': 2}})
    assert cfg.model == {'a': 1} and other == {'model': {'b': {'c': 2}}, 'seed': 0}
    assert other.model.b.c == 2 and other.filename == 'a.py'


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_are_configs(copied):
    cfg = RunConfig({'model': {'a': [1]}}, 'a.py')
    other = copied(cfg)
    assert other == cfg and other.filename == 'a.py' and type(other.model) is type(cfg.model)
    other.model.a.append(2)
    assert cfg.model.a == [1]
