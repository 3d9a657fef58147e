"""Transfer of classifier rows to another list of classes, matched by class name."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, zip_longest
from typing import Any, NamedTuple

from torch import Tensor

from vitdense.data.class_names import distinct_colors
from vitdense.errors import CheckpointError, some
from vitdense.model import DenseModel
from vitdense.protocols import ClassRows
from vitdense.types import ClassLayer

logger = logging.getLogger('vitdense')
FIX = (
    'let the config describe the model that was trained: only its classes may be others. Of another model, take the\n'
    'ViT alone (model.network.backbone.pretrained=PATH), or add a head to it (--add-head NAME)'
)


class ClassRow(NamedTuple):
    """Source row of one class."""

    name: str
    source: int | None  # row in the trained model; None: the class is new


def match_classes(wanted: Sequence[str], trained: Sequence[str]) -> list[ClassRow]:
    """Return for each class of `wanted` the row of the same name in `trained`.

    Names without exact match are compared without case, spaces, hyphens and underscores, where that is unique on both
    sides. The matching is one-to-one.
    """
    exact = {name: row for row, name in enumerate(trained)}
    rows = {name: exact[name] for name in wanted if name in exact}
    left = [name for name in trained if name not in rows]
    open_ = [name for name in wanted if name not in rows]
    counts = Counter(map(_plain, {*left})), Counter(map(_plain, {*open_}))
    loose = {_plain(name): exact[name] for name in left if counts[0][_plain(name)] == 1}
    rows |= {name: loose[_plain(name)] for name in open_ if counts[1][_plain(name)] == 1 and _plain(name) in loose}
    return [ClassRow(name, rows.get(name)) for name in wanted]


def extend_classes(known: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return the classes `known`, those that match one of `added` spelled as there, and then the others of `added`."""
    names = list(known)
    for row in match_classes(added, known):
        if row.source is None:
            names.append(row.name)
        else:
            names[row.source] = row.name
    return names


def joint_metainfo_of(known: Mapping[str, Any], metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """Return `metainfo` of data with the classes of a trained model, whose metainfo is `known`, ahead of its own.

    The model's classes keep their colours, and their category ids where the data does not use them; else they get
    unused ones.
    """
    joint = {**metainfo, **{key: dict(metainfo.get(key) or {}) for key in ('classes', 'palette', 'category_ids')}}
    for field, added in metainfo['classes'].items():
        old = (known.get('classes') or {}).get(field) or []
        names = joint['classes'][field] = extend_classes(old, added)
        colors = (known.get('palette') or {}).get(field) or distinct_colors(len(old))
        joint['palette'][field] = [*map(list, colors), *distinct_colors(len(names))[len(old) :]]
        ids = (metainfo.get('category_ids') or {}).get(field)
        if ids is not None:
            before = (known.get('category_ids') or {}).get(field) or [None] * len(old)
            own = {name: number for name, number in zip(added, ids, strict=True) if number is not None}
            used = {number for number in (*ids, *before) if number is not None}
            unused = count(max(used, default=0) + 1)
            kept = [next(unused) if number is None or number in ids else number for number in before]
            joint['category_ids'][field] = [own.get(name, number) for name, number in zip_longest(names, kept)]
    return joint


def _plain(name: str) -> str:
    """Return a name without case and separators, except between digits: '1 2' is not '12'."""
    plain = re.sub(r'[\s_-]+', ' ', unicodedata.normalize('NFKC', name).strip().casefold())
    return re.sub(r'(?<!\d) | (?!\d)', '', plain) or name


def class_layers(model: DenseModel) -> Iterator[tuple[str, str, ClassLayer]]:
    """Yield head, full name and declaration of every layer of `model` that has a row for each class."""
    for prefix, module in model.named_modules():
        for layer in module.class_layers if isinstance(module, ClassRows) else ():
            name = f'{prefix}.{layer.name}'
            head = next((head for head in model.tasks if name.startswith(f'network.heads.{head}.')), None)
            yield head or model.network.names[0], name, layer


def transfer_class_rows(
    model: DenseModel, state: Mapping[str, Tensor], trained: Mapping[str, Sequence[str]], *, where: str
) -> dict[str, Tensor]:
    """Return `state`, weights of a model with the classes `trained` ({field: names}), for the classes of `model`.

    Matched classes keep their rows, new ones have the initial rows of `model`, others are dropped; the log lists them.
    With the same classes in the same order `state` is unchanged.

    Raises CheckpointError when the number of classes differs and `trained` does not name them. `where` is the source in
    messages.
    """
    result, own, matched = dict(state), model.state_dict(), {}
    for head, name, layer in class_layers(model):
        wanted = model.head_classes.get(head)
        parameters = [key for key in own if key.startswith(f'{name}.') and key in state]
        if wanted is None or not parameters:
            continue
        known = _names(trained, model.tasks[head].field)
        if known is None:
            _check_rows(head, {key: (state[key], own[key]) for key in parameters}, where)
        if known is None or list(known) == list(wanted):
            continue
        matched[head] = (match_classes(wanted, known), known)
        for key in parameters:
            if state[key].shape[0] == len(known) + layer.num_extra and state[key].shape[1:] == own[key].shape[1:]:
                result[key] = _moved(state[key], own[key], matched[head][0], layer.num_extra)
    for head, (rows, known) in matched.items():
        _report(head, rows, known, where)
    return result


def _names(trained: Mapping[str, Sequence[str]], field: str) -> Sequence[str] | None:
    """Return the trained classes of a field of targets; of one that is not named, those of the only one that is."""
    return trained.get(field) or (next(iter(trained.values())) if len(trained) == 1 else None)


def _moved(trained: Tensor, own: Tensor, rows: Sequence[ClassRow], num_extra: int) -> Tensor:
    """Return `own`, with the rows of known classes and the `num_extra` last ones from `trained`."""
    moved = own.detach().clone().to(trained.dtype)
    for row, (_, source) in enumerate(rows):
        if source is not None:
            moved[row] = trained[source]
    if num_extra:
        moved[-num_extra:] = trained[-num_extra:]
    return moved


def _check_rows(head: str, parameters: Mapping[str, tuple[Tensor, Tensor]], where: str) -> None:
    """Raise CheckpointError unless weights that do not name their classes have rows for as many."""
    for key, (trained, own) in parameters.items():
        if trained.shape != own.shape:
            raise CheckpointError(
                'the weights do not say which classes they were trained on',
                where=where,
                why=f"'{head}' has other classes here ({key}: file {tuple(trained.shape)}, model {tuple(own.shape)}),\n"
                'and rows are taken over by the names of their classes',
                fix='give the folder model/ or a checkpoint (.pth) of the training run, which hold the names',
            )
    logger.warning(
        "%s does not name its classes: the rows of '%s' are taken as those of the config's classes, in their order",
        where,
        head,
    )


def _report(head: str, rows: Sequence[ClassRow], known: Sequence[str], where: str) -> None:
    taken = {row.source for row in rows}
    kinds = {
        'kept': [row.name for row in rows if row.source is not None and known[row.source] == row.name],
        'respelled': [
            f'{known[row.source]} -> {row.name}'
            for row in rows
            if row.source is not None and known[row.source] != row.name
        ],
        'new': [row.name for row in rows if row.source is None],
        'dropped': [name for row, name in enumerate(known) if row not in taken],
    }
    lines = [f'  {kind:9}  {len(names):4}  {some(names, 20)}' for kind, names in kinds.items()]
    logger.info("classes of '%s', from %s:\n%s", head, where, '\n'.join(lines).rstrip())
