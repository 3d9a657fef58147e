"""Conversion of a published checkpoint to a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.checkpoints.model_folder import save_model_folder, without_pretrained
from vitdense.config.classes import section_of
from vitdense.config.load import image_recipe
from vitdense.config.run_config import RunConfig
from vitdense.convert.architecture import choose_config, classes_of, match_vit
from vitdense.convert.families import FAMILIES, load_published
from vitdense.convert.key_rules import CheckpointFamily
from vitdense.convert.peer_files import read_info
from vitdense.errors import CheckpointError, ConfigError, did_you_mean
from vitdense.registry import build
from vitdense.storage.atomic import sha256_of
from vitdense.storage.weight_files import weight_file
from vitdense.storage.weight_sets import split_key
from vitdense.storage.weights import Coverage, State, read_weights


def import_weights(
    family: str,
    files: Sequence[str | Path],
    cfg: RunConfig | None,
    folder: str | Path,
    *,
    num_classes: int | None = None,
    accept_licence: bool = False,
    base: str | Path | None = None,
    options: Sequence[str] = (),
) -> Coverage:
    """Write the model folder of published weights and return the coverage.

    `family` is one of `FAMILIES`; `files` are its checkpoint, or its parts (a backbone and a head); a folder of
    transformers stands for the file in it. `cfg` is our config of the same architecture, which gives the model and the
    transforms of evaluation; without it, that of the family whose network has the tensors is taken, changed by
    `options`. Classes are those that the checkpoint names, COCO's, or those of the config, whose data need not be
    there (`classes_of`). Checkpoints that are differences (EoMT on DINOv3) need the file `base` of the pretrained
    backbone, to which they are added. Source, licence and checksums stand in `model.json` and the model card README.md.

    Raises ConfigError for an unknown family, for a licence that is not free or not known, unless `accept_licence`, and
    where the number of classes is not known; CheckpointError, with the names, when a tensor is missing or left over.
    """
    published = find_family(family)
    check_licence(published, accepted=accept_licence)
    info = read_info(files, family)
    files = [weight_file(file) for file in files]
    state = read_parts(files)
    if cfg is None:
        cfg = choose_config(family, published, state, info, num_classes=num_classes, options=options)
    metainfo, rows = classes_of(cfg, state, published, info, num_classes)
    recipe = match_vit(without_pretrained(cfg.model), state, published)
    model = build(recipe, classes=metainfo['classes'])
    where, base_state = ', '.join(Path(file).name for file in files), None if base is None else read_weights(base)
    coverage = load_published(model.network, state, published, where=where, base=base_state, rows=rows)
    provenance = origin(family, published, files if base is None else [*files, weight_file(base)])
    extra = {'mean': list(model.network.mean), 'std': list(model.network.std)}
    save_model_folder(
        folder,
        recipe,
        model.state_dict(),
        metainfo=metainfo,
        transforms=image_recipe(cfg)['transforms'] if section_of(cfg) else [],
        extra={**extra, 'licence': published.licence, 'published': provenance, 'notes': notes_of(provenance, coverage)},
    )
    return coverage


def find_family(name: str) -> CheckpointFamily:
    """Return the family of this name. Raises ConfigError."""
    if name not in FAMILIES:
        raise ConfigError(
            f"no family of published weights is called '{name}'{did_you_mean(name, FAMILIES)}",
            where='FAMILY',
            why=f'known are {", ".join(FAMILIES)}',
            fix='choose one of these',
        )
    return FAMILIES[name]


def check_licence(published: CheckpointFamily, *, accepted: bool) -> None:
    """Raise ConfigError for weights with a restrictive or unknown licence, unless `accepted`."""
    if published.free or accepted:
        return
    raise ConfigError(
        f'the licence of these weights has conditions: {published.licence or "unknown"}',
        where=published.source,
        why=published.evidence or 'no licence could be established: without one, using them is not allowed',
        fix='read the licence; if you may use the weights under it, add --accept-licence (Python: accept_licence=True)',
    )


def read_parts(files: Sequence[str | Path]) -> State:
    """Return the tensors of all files together. Raises CheckpointError when two files have one of the same name."""
    state: State = {}
    for file in files:
        part = read_weights(file)
        double = sorted(set(part) & set(state))
        if double:
            raise CheckpointError(
                f'two files have a tensor called {double[0]}',
                where=str(file),
                why='files of one model are parts of it: a backbone and a head',
                fix='give the files of one model only',
            )
        state |= part
    return state


def origin(family: str, published: CheckpointFamily, files: Sequence[str | Path]) -> dict[str, Any]:
    """Return source, licence and files of weights, for the model card."""
    return {
        'family': family,
        'name': published.name,
        'source': published.source,
        'licence': published.licence or 'unknown',
        'licence_stated_in': published.evidence or 'nowhere that could be found',
        'note': published.note,
        'files': [{'name': path.name, 'sha256': sha256_of(path)} for path, _ in map(split_key, files)],
    }


def notes_of(provenance: Mapping[str, Any], coverage: Coverage) -> str:
    """Return what the model card says about the origin of the weights."""
    files = '\n'.join(f'- `{file["name"]}`, SHA-256 `{file["sha256"]}`' for file in provenance['files'])
    note = f'- {provenance["note"]}\n' if provenance['note'] else ''
    return (
        f'\n## Origin: {provenance["name"]}\n\n'
        f'Published weights under the names of vitdense; {coverage}.\n\n'
        f'- Source: {provenance["source"]}\n'
        f'- Licence of the weights: {provenance["licence"]}\n'
        f'- Where that is stated: {provenance["licence_stated_in"]}\n'
        f'- The data that they were trained on has terms of its own.\n'
        f'{note}\n'
        f'Made from:\n\n{files}'
    )
