"""Trained models by path or by the name of a published one, which is fetched and converted at its first use."""

from __future__ import annotations

import difflib
import logging
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from vitdense.checkpoints.descriptions import FORMAT
from vitdense.checkpoints.hub_repos import fetch_repo, is_hub_name
from vitdense.config.load import load_config
from vitdense.config.locate import shipped_config
from vitdense.convert.fetch import fetch, is_here
from vitdense.convert.import_weights import check_licence, import_weights
from vitdense.convert.published_models import PublishedModel, find_model, published_models
from vitdense.errors import CheckpointError, ConfigError
from vitdense.storage.atomic import cache_folder, make_folder, read_json

logger = logging.getLogger('vitdense')


def model_path(name_or_path: str | Path, *, accept_licence: bool = False) -> Path:
    """Return the path of a trained model: what exists at `name_or_path`, else the published model of that name,
    or the repository `hf:OWNER/NAME` of the Hugging Face Hub.

    At its first use its files are fetched and converted to a model folder in the cache (VITDENSE_CACHE); source and
    licence are logged. Anything else is returned as a path, for the reader of models to say what is wrong with it.

    Raises ConfigError for a name that is nearly one of the table, and for a licence with conditions unless
    `accept_licence`; CheckpointError when the files cannot be had or are damaged; DiskError.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    if is_hub_name(name_or_path):
        return fetch_repo(str(name_or_path))
    model = find_model(str(name_or_path))
    if model is None:
        _refuse_misspelt(str(name_or_path))
        return path
    return _converted(model, accept_licence)


def converted_folder(model: PublishedModel) -> Path:
    """Return the model folder of a published model, which need not be there yet."""
    return cache_folder() / 'models' / model.name


def download_folder(model: PublishedModel) -> Path:
    """Return the folder for the files of a publisher, where they may also be put by hand."""
    return cache_folder() / 'downloads' / model.name


def status(model: PublishedModel) -> str:
    """Return 'ready' for a model that is converted, 'fetched' for one whose files are here, else ''."""
    if _is_current(converted_folder(model)):
        return 'ready'
    return 'fetched' if all(is_here(file, download_folder(model)) for file in model.all_files) else ''


def _is_current(folder: Path) -> bool:
    """Whether a folder holds a model that this version reads."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        return read_json(folder / 'model.json').get('format') == FORMAT
    return False


def _converted(model: PublishedModel, accept_licence: bool) -> Path:
    """Return the model folder of a published model, made where it is not there; one process makes it."""
    folder, downloads = converted_folder(model), download_folder(model)
    if _is_current(folder):
        return folder
    published = model.published
    check_licence(published, accepted=accept_licence)
    logger.info('%s: %s; licence: %s', model.name, published.source, published.licence)
    make_folder(downloads)
    with FileLock(downloads / '.lock'):
        if not _is_current(folder):
            files = _fetch_all(model, downloads)
            base = files.pop() if model.base else None
            cfg = load_config(shipped_config(model.config) or model.config)
            import_weights(model.family, files, cfg, folder, accept_licence=True, base=base)
            logger.info('%s: converted to %s', model.name, folder)
    return folder


def _fetch_all(model: PublishedModel, folder: Path) -> list[Path]:
    """Return the local paths of all files. Raises CheckpointError, which names the others that are missing as well."""
    missing = [file for file in model.all_files if not is_here(file, folder)]
    paths: list[Path] = []
    for file in model.all_files:
        try:
            paths.append(fetch(file, folder))
        except CheckpointError as error:
            others = ''.join(f'\nalso needed there: {other.address}' for other in missing if other != file)
            raise CheckpointError(error.message, where=error.where, why=error.why, fix=error.fix + others) from None
    return paths


def _refuse_misspelt(word: str) -> None:
    """Raise ConfigError for a word that is nearly the name of a published model."""
    if any(mark in word for mark in (os.sep, '/', ':')) or Path(word).suffix:
        return
    near = difflib.get_close_matches(word.lower().replace('_', '-'), published_models(), n=3, cutoff=0.75)
    if near:
        raise ConfigError(
            f"no path and no published model is called '{word}'; did you mean {' or '.join(map(repr, near))}?",
            where=word,
            why=f'{len(published_models())} published models have a name',
            fix='see `vitdense models`, or give the path of a model folder',
        )
