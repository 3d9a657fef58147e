"""Names and numbers of the classes that the heads of a model predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitdense.types import ImageClass, Instances, Prediction, SemanticMap
from vitdense.visualize.colors import names_of

KINDS: dict[type, tuple[str, str]] = {  # what a head predicts, and where a result has it
    Instances: ('objects', 'result.boxes'),
    SemanticMap: ('label map', 'result.semantic'),
    ImageClass: ('image class', 'result.image_class'),
}


def class_names(metainfo: Mapping[str, Any], head: str, prediction: Prediction, at_least: int) -> list[str]:
    """Return the names of the classes that `head` predicts; a class without a name is called `class NUMBER`."""
    kind = {SemanticMap: 'semantic', ImageClass: 'image_label'}.get(type(prediction), 'labels')
    name = (metainfo.get('head_fields') or {}).get(head, kind)
    return names_of(metainfo, name, at_least=at_least)


def class_list(metainfo: Mapping[str, Any], head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return `[{'name', 'class_id'}, ...]` of the classes of `head`, with the `category_id` where there is one."""
    field = (metainfo.get('head_fields') or {}).get(head, 'labels')
    ids = list((metainfo.get('category_ids') or {}).get(field) or ())
    ids += [None] * (len(names) - len(ids))
    rows = ({'name': name, 'class_id': number, 'category_id': ids[number]} for number, name in enumerate(names))
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
