"""Names of splits in folders, files and lists."""

from __future__ import annotations

SPLITS = {  # how a split is called in configs -> how folders, lists and keys of formats call it
    'train': ('train', 'training', 'train2017', 'trainval'),
    'val': ('val', 'valid', 'validation', 'val2017', 'dev'),
    'test': ('test', 'testing', 'test2017'),
}


def split_of(name: str) -> str | None:
    """Return train, val or test, where the name of a file or folder means one; `instances_train2017` is train."""
    words = name.lower().replace('-', '_').replace('.', '_').split('_')
    return next((split for split, names in SPLITS.items() if set(words) & set(names)), None)
