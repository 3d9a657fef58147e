"""Splits: their names in folders, files and lists, and a random part of one."""

from __future__ import annotations

import numpy as np

from vitdense.arguments import check, span

SPLITS = {  # how a split is called in configs -> how folders, lists and keys of formats call it
    'train': ('train', 'training', 'train2017', 'trainval'),
    'val': ('val', 'valid', 'validation', 'val2017', 'dev'),
    'test': ('test', 'testing', 'test2017'),
}


def split_of(name: str) -> str | None:
    """Return train, val or test, where the name of a file or folder means one; `instances_train2017` is train."""
    words = name.lower().replace('-', '_').replace('.', '_').split('_')
    return next((split for split, names in SPLITS.items() if set(words) & set(names)), None)


def part_of(
    count: int, part: tuple[float, float] | None, where: str, *, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows, ascending, of a part of `count` images: from the share `part[0]` up to `part[1]` of a random
    order, which is always the same for the same count; None: all.

    The parts (0, 0.15) and (0.15, 1) have no image in common and together all. With `groups`, a number of each image
    such as its class, every group is cut at these shares (stratified), as closely as its size allows. Raises
    ConfigError for shares outside of [0, 1] and for a part without image.
    """
    if part is None:
        return np.arange(count)
    start, stop = (round(count * share) for share in span(part, where))
    why = f'it is a range of shares from 0 to 1, with at least one of {count} images'
    check(0 <= start < stop <= count, where, part, why, 'write for example (0.15, 1.0)')
    order = np.random.default_rng(0).permutation(count)
    if groups is not None:
        order = order[np.argsort(_ranks(groups[order]), kind='stable')]
    return np.sort(order[start:stop])


def _ranks(groups: np.ndarray) -> np.ndarray:
    """Return where each row lies among those of its group, in (0, 1)."""
    rows = np.argsort(groups, kind='stable')
    _, first, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
    ranks = np.empty(len(groups))
    ranks[rows] = (np.arange(len(groups)) - np.repeat(first, sizes) + 0.5) / np.repeat(sizes, sizes)
    return ranks
