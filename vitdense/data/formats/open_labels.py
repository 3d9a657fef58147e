"""Detection of the format of box labels from their file or folder."""

from __future__ import annotations

from pathlib import Path

from vitdense.data.formats.content import CocoContent
from vitdense.data.formats.csv_boxes import read_csv
from vitdense.data.formats.voc import read_voc
from vitdense.data.formats.yolo import read_yolo
from vitdense.errors import ConfigError


def open_labels(path: Path, images: Path, split: str | None) -> CocoContent | None:
    """Return labels that are not COCO's; None for a file that should be COCO's JSON.

    A folder holds PASCAL VOC's XML files, `.yaml` is YOLO's description (with `split`), `.csv` has a box on each line.
    Raises DataError, and ConfigError for a YOLO data set without a split.
    """
    if path.is_dir():
        return read_voc(path, images, split)
    if path.suffix.lower() in ('.yaml', '.yml'):
        if split is None:
            raise ConfigError(
                'YOLO labels need a split',
                where=str(path),
                why='one file describes the images of training, validation and test',
                fix="add split='train', 'val' or 'test' to the data set",
            )
        return read_yolo(path, split)
    if path.suffix.lower() == '.csv':
        return read_csv(path, images)
    return None
