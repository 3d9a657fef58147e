"""Config and checkpoint of a command line that names a run folder, a model folder or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from vitdense.checkpoints.run import find_checkpoint
from vitdense.checkpoints.shard_folder import is_shard_folder
from vitdense.errors import ConfigError


def config_and_checkpoint(config: str, checkpoint: str | None) -> tuple[str, str | None]:
    """Return the config and the checkpoint that `tools/test.py CONFIG [CHECKPOINT]` is about.

    Both may be replaced by the folder of a run, its model folder, or one of its checkpoints: the config is then the
    `config.py` of the run, and the checkpoint what is named, or else the best one of the run. Raises ConfigError.
    """
    path = Path(config)
    is_model = (path / 'model.json').is_file()
    if not path.is_dir() and (checkpoint is not None or path.suffix not in ('.pth', '.safetensors')):
        return config, checkpoint
    run = run_folder_of(path)
    if run is None:
        run = path if path.is_dir() and not is_model else path.parent
        what = 'a model folder describes the model, not the data' if is_model else f'{run} is no folder of a run'
        raise ConfigError(
            f"'{config}' is not a config",
            where=config,
            why=f'{what}: no config.py of a run lies there',
            fix=f'name the config that says which data is tested, then the weights: test CONFIG.py {config}',
        )
    if checkpoint is None:
        best = best_of(run) if path == run else path
        checkpoint = str(best) if best else None
    return str(run / 'config.py'), checkpoint


def run_folder_of(path: Path) -> Path | None:
    """Return the folder of the run that `path` is, or whose model folder or checkpoint it is; None where it is none."""
    inside = is_shard_folder(path) or (path / 'model.json').is_file()
    run = path if path.is_dir() and not inside else path.parent
    is_run = (run / 'config.py').is_file() and any((run / name).exists() for name in ('log.txt', 'metrics.csv'))
    return run if is_run else None


def best_of(run: Path) -> Path | None:
    """Return the best checkpoint of a run, else its newest whole one."""
    return run / 'best.pth' if (run / 'best.pth').is_file() else find_checkpoint(run)
