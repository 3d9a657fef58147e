"""Files of publishers: from the Hugging Face Hub, a URL, or put there by hand; checked, or recorded and compared."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError

from vitdense.convert.published_models import RemoteFile
from vitdense.errors import CheckpointError
from vitdense.reporting.console import progress
from vitdense.storage.atomic import disk_error, is_of_disk, read_json, sha256_of, write_json
from vitdense.storage.download import check_file, download, reach, unreachable

logger = logging.getLogger('vitdense')
RECORD = 'checksums.json'  # sizes and hashes of files whose publisher states none, as they first arrived
_SHA256 = re.compile(r'[0-9a-f]{64}')


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Return the local path of a file: in `folder`, where it may have been put by hand, or in the cache of the Hub.

    Raises CheckpointError, which names the place for a copy, when it cannot be fetched, is cut off, or is not the file
    that its publisher states or that was first fetched here; DiskError.
    """
    path = folder / file.local_name
    if path.is_file():
        check_file(path, size=file.size, hashes=file.hashes, where=str(path))
    elif file.repo:
        path = _from_hub(file, path)
    else:
        logger.info('fetching %s', file.url)
        with progress(file.local_name) as show:
            download(
                file.url,
                path,
                size=file.size,
                hashes=file.hashes,
                on_progress=lambda done, total: show(done, total or 0, 'bytes'),
            )
    _compare_record(file, path, folder / RECORD)
    return path


def is_here(file: RemoteFile, folder: Path) -> bool:
    """Whether a file needs no network."""
    return (folder / file.local_name).is_file() or _in_hub_cache(file) is not None


def _in_hub_cache(file: RemoteFile) -> Path | None:
    cached = try_to_load_from_cache(file.repo, file.path) if file.repo else None
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(file: RemoteFile, by_hand: Path) -> Path:
    """Return the path of a file in the cache of the Hub, fetched where it is not there; `by_hand` may hold a copy."""
    path = _in_hub_cache(file)
    url = hf_hub_url(file.repo, file.path, endpoint=constants.ENDPOINT)
    if path is None:
        try:
            if not constants.HF_HUB_OFFLINE:
                reach(url)
            logger.info('fetching %s', url)
            path = Path(hf_hub_download(file.repo, file.path, endpoint=constants.ENDPOINT))
        except GatedRepoError:
            raise CheckpointError(
                f'{file.repo} is open only to users who accepted its terms',
                where=f'https://huggingface.co/{file.repo}',
                why='the Hub does not know you, or you did not accept them there',
                fix=f'accept the terms on that page, run `hf auth login`, and try again; or put the file here:\n'
                f'{by_hand}',
            ) from None
        except Exception as error:  # the client raises many types
            if is_of_disk(error):
                raise disk_error(by_hand, error, what=f"'{file.local_name}' into the cache of the Hub") from error
            raise unreachable(url, by_hand, error) from None
    stated = path.resolve().name  # the cache names large files by the SHA-256 that the Hub states
    hashes = {'sha256': stated} if _SHA256.fullmatch(stated) else {}
    check_file(path, size=file.size, hashes=hashes | file.hashes, where=str(path))
    return path


def _compare_record(file: RemoteFile, path: Path, record: Path) -> None:
    """Record size and SHA-256 of a file whose publisher states no hash, or compare them with the record.

    Raises CheckpointError for another file than the first one.
    """
    if file.hashes or _SHA256.fullmatch(path.resolve().name):
        return
    known = read_json(record) if record.is_file() else {}
    if file.local_name in known:
        first = known[file.local_name]
        check_file(path, size=first['size'], hashes={'sha256': first['sha256']}, where=f'{path}, recorded in {record}')
        return
    row = {'size': path.stat().st_size, 'sha256': sha256_of(path), 'url': file.address}
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, known | {file.local_name: row})
    except OSError as error:
        raise disk_error(record, error) from error
