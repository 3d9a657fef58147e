"""Three pictures in a row: as it was, as it was shown, and as it was painted."""

from __future__ import annotations

import numpy as np

from vitdense.visualize.colors import GREY
from vitdense.visualize.text import PAPER


def triptych(picture: np.ndarray, painted: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return `picture`, the same with its `hidden` pixels grey, and `painted` side by side, with gaps between them.

    `picture` and `painted` are (H, W, 3) uint8, `hidden` is (H, W) bool.
    """
    shown = np.where(hidden[..., None], np.array(GREY, np.uint8), picture)
    gap = np.full((picture.shape[0], max(2, picture.shape[1] // 64), 3), PAPER, np.uint8)
    return np.concatenate([picture, gap, shown, gap, painted], axis=1)
