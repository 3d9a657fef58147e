"""Configs follow the published recipes to the last number: configs/recipes.toml against the resolved configs."""

import re
from fnmatch import fnmatch

import pytest

from tests.recipes.readme import README, TITLES, make_readme
from tests.recipes.table import (
    ROOT,
    Recipe,
    changed,
    config_names,
    config_of,
    free_of,
    idle,
    numbers,
    read_table,
    recipes_of,
    rows_of,
)
from vitdense.errors import ConfigError

PUBLISHED = [config_name for config_name in config_names() if recipes_of(config_name)]


@pytest.mark.parametrize('config_name', PUBLISHED)
def test_a_config_follows_its_published_recipe(config_name):
    assert not Recipe(config_name).differences(rows_of(config_name))


def noticed(config_name, path):
    try:
        return Recipe(config_name, changed(config_of(config_name), path)).notices(path, rows_of(config_name))
    except (ConfigError, ValueError):  # a number that cannot be
        return True


@pytest.mark.parametrize('config_name', PUBLISHED)
def test_changing_any_number_is_noticed(config_name):
    cfg, free = config_of(config_name), tuple(free_of(config_name))
    paths = [path for path, _ in numbers(cfg) if not idle(path, cfg) and not path.startswith(free)]
    assert paths or free
    unnoticed = [path for path in paths if not noticed(config_name, path)]
    assert not unnoticed, f'not in configs/recipes.toml: {unnoticed}'


@pytest.mark.parametrize(
    ('config_name', 'path'),
    [
        ('detection/dino_mae_b_coco_12ep', 'optim_wrapper.optimizer.lr'),
        ('detection/dino_mae_b_coco_12ep', 'model.network.branches.det.head.num_queries'),
        ('semantic/eomt_dinov2_l_ade20k', 'optim_wrapper.clip_grad.max_norm'),
        ('semantic/upernet_mae_b_ade20k', 'model.network.branches.sem.adapter.layers'),
        ('classification/finetuned_mae_b_imagenet', 'optim_wrapper.groups.decay'),
    ],
)
def test_a_wrong_number_is_named(config_name, path):
    differences = Recipe(config_name, changed(config_of(config_name), path)).differences(rows_of(config_name))
    assert any(difference.startswith(f'{path}: ') for difference in differences)


def test_every_config_is_in_the_table():
    own = [pattern for part in read_table()['own'] for pattern in part['configs']]
    for config_name in config_names():
        assert bool(recipes_of(config_name)) != any(fnmatch(config_name, pattern) for pattern in own), config_name


def test_every_published_number_is_that_of_the_docstring():
    for config_name in PUBLISHED:
        numbers_of = [recipe['published'] for recipe in recipes_of(config_name) if 'published' in recipe]
        text = re.sub(r'\s+', ' ', (ROOT / 'configs' / f'{config_name}.py').read_text(encoding='utf-8'))
        if 'Aims at' not in text:
            assert 'No published number' in text and not numbers_of, config_name
            continue
        (number,) = numbers_of
        assert re.search(rf'Aims at (about )?{re.escape(number.split()[0])}\b', text), (config_name, number)


def test_numbers_that_no_source_has_are_those_of_the_docstrings():
    upernet = config_of('semantic/upernet_dinov2_s_ade20k')['model']
    assert upernet['network']['branches']['sem']['head']['channels'] == 512
    assert (upernet['tiler']['size'], upernet['tiler']['stride']) == (512, 341)
    for size in 'bl':
        cfg = config_of(f'pretraining/mae_vit_{size}_imagenet')
        train, val = (cfg[f'{split}_dataloader']['dataset']['transforms'][0]['size'] for split in ('train', 'val'))
        assert train == val == 224


def test_every_row_has_its_source():
    """A source is one of the table, or a repository, paper or package with a place in it."""
    known = set(read_table()['sources'])
    for recipe in read_table()['recipe']:
        assert any(fnmatch(config_name, pattern) for config_name in config_names() for pattern in recipe['configs']), (
            recipe['what']
        )
        for row in recipe['rows']:
            first = re.split(r'[:,;]', row[2])[0].strip()
            assert first in known or re.match(r'\S+/\S+ |torch\.|timm |\d+ epochs of|Kerssies', row[2]), row


def test_the_readme_is_what_its_script_writes():
    assert {config_name.partition('/')[0] for config_name in config_names()} == set(TITLES)
    assert README.read_text(encoding='utf-8') == make_readme(), 'run python -m tests.recipes.readme'
