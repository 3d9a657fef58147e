"""The folder of a run stands for its config and its best checkpoint, and for its model."""

from pathlib import Path

import pytest

from vitdense.checkpoints.model_folder import model_folder_of
from vitdense.checkpoints.run_folder import config_and_checkpoint
from vitdense.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files that a run leaves, by name alone."""
    (tmp_path / 'run' / 'model').mkdir(parents=True)
    for name in ('config.py', 'metrics.csv', 'best.pth', 'step_000004.pth', 'model/model.json'):
        (tmp_path / 'run' / name).write_text('')
    return tmp_path / 'run'


def test_a_folder_of_a_run(run):
    config, best = str(run / 'config.py'), str(run / 'best.pth')
    assert config_and_checkpoint(str(run), None) == (config, best)
    assert config_and_checkpoint(str(run), 'other.pth') == (config, 'other.pth')
    for part in ('model', 'step_000004.pth'):
        assert config_and_checkpoint(str(run / part), None) == (config, str(run / part))
    assert config_and_checkpoint(config, best) == (config, best)
    assert config_and_checkpoint('configs/x.py', None) == ('configs/x.py', None)
    assert model_folder_of(run) == model_folder_of(run / 'model') == run / 'model'
    assert model_folder_of(run / 'nothing') == run / 'nothing'


def test_a_model_folder_alone_has_no_data_config(run):
    (run / 'config.py').unlink()
    with pytest.raises(ConfigError) as caught:
        config_and_checkpoint(str(run / 'model'), None)
    assert 'not the data' in caught.value.why and str(run / 'model') in caught.value.fix
    with pytest.raises(ConfigError, match='is not a config'):
        config_and_checkpoint(str(run / 'best.pth'), None)
