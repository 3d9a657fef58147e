"""Writing of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vitdense.arguments import check
from vitdense.errors import DiskError
from vitdense.storage.atomic import disk_fix

WRITABLE = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')


def write_image(image: np.ndarray, path: str | Path) -> Path:
    """Write an (H, W) or (H, W, 3) uint8 array, RGB, in the format of the suffix. Raises ConfigError, DiskError."""
    path = Path(path)
    why = f'the suffix of an image names its format; known are {", ".join(WRITABLE)}'
    known = path.suffix.lower() in WRITABLE
    check(known, 'path of an image', str(path), why, 'give the file a suffix such as .jpg or .png')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **({'quality': 92} if path.suffix.lower() in ('.jpg', '.jpeg') else {}))
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format can have
        raise DiskError(
            f'cannot write {path.name}',
            where=str(path),
            why=str(error),
            fix=disk_fix(error)
            if isinstance(error, OSError) and error.errno
            else 'choose another format, such as .png',
        ) from error
    return path
