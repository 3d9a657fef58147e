"""Classes of a classification data set, from folder names, class lists or WordNet ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitdense.arguments import check
from vitdense.data.class_names import read_classes
from vitdense.data.files.listing import read_text
from vitdense.data.timm_info import imagenet_wordnet
from vitdense.errors import ConfigError

IMAGENET = 'imagenet1k'
_LINE = re.compile(r'([nvar]\d{8})[\s,]+(.+)')  # WordNet id: part of speech and offset


def read_folder_classes(
    classes: Sequence[str] | Mapping[int, str] | str | Path | None,
    wordnet: str | Path | None,
    folders: Sequence[str],
    *,
    root: Path,
) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and {folder, id or name: class index}. `folders` are the class labels in the data.

    See `ClassificationDataset` for what `classes` and `wordnet` may be. Raises ConfigError.
    """
    table = _read_wordnet(classes, root) if isinstance(classes, str | Path) else None
    if classes is None:
        ids = list(folders)
    elif table is not None:
        ids = list(table)
    else:
        ids = list(read_classes(classes, root=root).values())
    if wordnet is not None:
        table = _read_wordnet(wordnet, root)
        why = 'it is no WordNet file, whose lines are an id and synonyms, such as: n01440764 tench, Tinca tinca'
        fix = f"give such a file, or '{IMAGENET}'; a plain list of names is classes="
        check(table is not None, 'wordnet', str(wordnet), why, fix)
    firsts = {key: synonyms.split(',')[0].strip() for key, synonyms in (table or {}).items()}
    counts = Counter(firsts.get(key, key) for key in ids)  # 'crane', the bird and the machine, get their id behind it
    names = [name if counts[name] == 1 else f'{name} ({key})' for key in ids for name in [firsts.get(key, key)]]
    return names, {word: number for words in (names, ids) for number, word in enumerate(words)}


def _read_wordnet(source: str | Path, root: Path) -> dict[str, str] | None:
    """Return {id: synonyms} in the order of a WordNet file; None where it is none. Raises ConfigError."""
    if str(source) == IMAGENET:
        return imagenet_wordnet()
    path = root / source
    if path.suffix != '.txt' or not path.is_file():
        return None
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'cannot read {path.name}', where=str(path), why=str(error), fix='store it as a UTF-8 text file'
        ) from None
    matches = [_LINE.fullmatch(line) for line in lines]
    return {match[1]: match[2] for match in matches} if matches and all(matches) else None
