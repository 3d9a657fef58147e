"""A number of classes that the data contradicts is refused before any weight is made, with the names and the line."""

import pytest

from vitdense.errors import ConfigError
from vitdense.train import start as assembly


@pytest.mark.parametrize(
    'option',
    [
        '+model.network.branches.sem.head.num_classes=7',
        '+model.tasks.sem.num_classes=7',
        "+model.network.num_classes={'sem':7}",
    ],
)
def test_an_option_that_the_data_contradicts(option, trainer, monkeypatch):
    monkeypatch.setattr(assembly, 'build', lambda *_, **__: pytest.fail('a model is made'))
    with pytest.raises(ConfigError) as caught:
        trainer(options=(option,))
    if 'tasks' not in option:  # that task takes no such argument
        error = caught.value
        assert "'sem' 7 classes, but the data has 4" in error.message and 'num_classes' in error.where
        assert 'background, circle, square, triangle' in error.why


def test_the_line_of_the_config_is_named(config_file, trainer):
    text = config_file.read_text().replace("norm='batch'", "num_classes=3, norm='batch'")
    config_file.write_text(text)
    line = 1 + text[: text.index('num_classes=3')].count('\n')
    with pytest.raises(ConfigError) as caught:
        trainer()
    assert f'{config_file}:{line}: model.network.branches.sem.head.num_classes' == caught.value.where


def test_the_number_of_the_data_may_stand_in_the_config(trainer):
    assert trainer(options=('+model.network.branches.sem.head.num_classes=4',)) is not None
