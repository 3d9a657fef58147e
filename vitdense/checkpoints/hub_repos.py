"""Model folders in repositories of the Hugging Face Hub: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitdense.checkpoints.descriptions import described_weights, read_description
from vitdense.checkpoints.model_card import write_card
from vitdense.checkpoints.model_folder import CONTENT, model_folder_of
from vitdense.errors import CheckpointError, ConfigError
from vitdense.storage.atomic import disk_error, is_of_disk, read_json, write_json

PREFIX = 'hf:'
FILES = ('README.md', 'SHA256SUMS', '*.json', '*.safetensors', '*.onnx', '*.onnx.data', '*.xml', '*.bin', '*.pt2')
_NAME = re.compile(r'(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')


def is_hub_name(name: object) -> bool:
    """Whether a name is that of a repository of the Hub."""
    return isinstance(name, str) and name.startswith(PREFIX)


def fetch_repo(name: str) -> Path:
    """Return the folder of the model in the repository `name`, from the cache of the Hub or fetched into it.

    Only data files are fetched. Raises ConfigError for a name that is none, CheckpointError where it cannot be had.
    """
    repo, revision = _parts(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES), library_name='vitdense'))
    except GatedRepoError as error:
        raise _unavailable(name, error, 'accept its terms on its page, then `hf auth login`') from error
    except RevisionNotFoundError as error:
        raise _unavailable(name, error, 'name a branch, a tag or a commit of the repository after the @') from error
    except RepositoryNotFoundError as error:
        raise _unavailable(name, error, 'check the name; for a private repository, `hf auth login` first') from error
    except Exception as error:  # the client raises many types
        if is_of_disk(error):
            raise disk_error(Path(name), error, what=f"'{repo}' into the cache of the Hub") from error
        raise _unavailable(name, error, 'check the network, or download the repository and give its folder') from error


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
    token: str | None = None,
) -> str:
    """Upload a model folder, or an exported one, to the repository `repo` (OWNER/NAME) and return its address.

    The repository is made where it is not there, the branch `revision` too. `licence` (an id of the Hub, such as
    'apache-2.0') and `datasets` go into `model.json` and the card. The weights are compared with their SHA-256 first.

    Raises ConfigError for a wrong name, CheckpointError for a folder that is not whole or an upload that fails.
    """
    name, at = _parts(repo)
    folder, revision = model_folder_of(folder), revision or at
    info = read_description(folder / 'model.json', CONTENT)
    if not (folder / 'export.json').is_file():
        described_weights(folder / 'model.json', info)
    added = ({'licence_id': licence} if licence else {}) | ({'data': list(datasets)} if datasets else {})
    try:
        content = {**read_json(folder / 'model.json'), **added}
        if added:
            write_json(folder / 'model.json', content)
        write_card(folder, {'name': name.partition('/')[2], **content}, repo=name)
    except OSError as error:
        raise disk_error(folder, error, what='the model card') from error
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name='vitdense')
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        message = 'Upload a vitdense model'
        done = api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, allow_patterns=list(FILES), commit_message=message
        )
    except Exception as error:  # the client raises many types
        fix = '`hf auth login` with a token that may write there, and check the network'
        why = str(error).strip().partition('\n')[0]
        raise CheckpointError(f'{name}: the upload failed', where=str(folder), why=why, fix=fix) from error
    return str(done.commit_url)


def _parts(name: str) -> tuple[str, str | None]:
    """Return repository and revision of a name. Raises ConfigError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"'{name}' names no repository of the Hugging Face Hub",
            where=name,
            why='a repository has an owner and a name',
            fix='write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION',
        )
    return match[1], match[2]


def _unavailable(name: str, error: Exception, fix: str) -> CheckpointError:
    why = str(error).strip().partition('\n')[0] or type(error).__name__
    return CheckpointError(f'{name} cannot be fetched', where=name, why=why, fix=fix)
