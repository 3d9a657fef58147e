"""What `tools/shards.py` does: the samples of a labelled folder as shards, with the arguments of their data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.formats.labelled_folder import LabelledFolder, read_folder
from vitdense.data.formats.open_labels import open_labels
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.shards.index import scan_shards, write_index
from vitdense.data.shards.write import ShardMember, write_shards
from vitdense.reporting.console import console, progress
from vitdense.storage.atomic import make_folder

LABELS = '.seg.png'  # what the names of label maps in shards end in


def index_shards(folder: Path) -> int:
    """Write the index of shards that lie in `folder`; return the number of files."""
    index = scan_shards(folder)
    write_index(folder, index)
    return len(index.size)


def shard_folder(folder: Path, out: Path, *, max_bytes: int = 10**9) -> dict[str, dict[str, Any]]:
    """Write every split of a labelled folder as shards below `out`, with its labels, and return for each the
    arguments of its data set, whose paths start at `out`. Raises DataError, DiskError and ConfigError.
    """
    data = read_folder(folder)
    make_folder(out)
    return {split: _WRITERS[data.task](data, split, out, max_bytes) for split in data.splits}


def _detection(data: LabelledFolder, split: str, out: Path, max_bytes: int) -> dict[str, Any]:
    arguments = data.splits[split]
    dataset = CocoDetection(**arguments, root=data.root, cache=False, evaluation=True)
    content = open_labels(dataset.path, Path(dataset.images), arguments.get('split'))
    target = out / f'{split}.json'
    shutil.copyfile(dataset.path, target) if content is None else target.write_bytes(content.encoded())
    _write(out / split, _images(dataset), len(dataset), max_bytes)
    return dict(annotations=target.name, images=split)


def _segmentation(data: LabelledFolder, split: str, out: Path, max_bytes: int) -> dict[str, Any]:
    arguments = data.splits[split]
    dataset = SegmentationDataset(**arguments, root=data.root)
    classes = out / Path(arguments['classes']).name
    shutil.copyfile(data.root / arguments['classes'], classes)
    files = list(dataset.paths())

    def samples() -> Iterator[Sequence[ShardMember]]:
        for (image,), labels in zip(_images(dataset), files[1::2], strict=True):
            yield image, ShardMember(f'{PurePosixPath(image.name).with_suffix("")}{LABELS}', labels)

    _write(out / split, samples(), len(dataset), max_bytes)
    return dict(images=split, labels=split, label_suffix=LABELS, classes=classes.name)


def _classification(data: LabelledFolder, split: str, out: Path, max_bytes: int) -> dict[str, Any]:
    dataset = ClassificationDataset(**data.splits[split], root=data.root)

    def samples() -> Iterator[Sequence[ShardMember]]:
        before = ''
        for row, (image,) in enumerate(_images(dataset)):
            label = ShardMember(f'{PurePosixPath(image.name).with_suffix("")}.cls', b'%d' % dataset.label_of(row))
            yield (image,) if label.name == before else (image, label)  # a.jpg and a.png have one label
            before = label.name

    _write(out / split, samples(), len(dataset), max_bytes)
    return dict(folder=split)


_WRITERS: dict[str, Callable[[LabelledFolder, str, Path, int], dict[str, Any]]] = {
    'detection': _detection,
    'segmentation': _segmentation,
    'classification': _classification,
}


def _images(dataset: Any) -> Iterator[tuple[ShardMember]]:
    folder, names = dataset.image_files()
    return ((ShardMember(name, folder / name),) for name in names)


def _write(folder: Path, samples: Iterator[Sequence[ShardMember]], count: int, max_bytes: int) -> None:
    with progress(f'shards of {folder.name}', count) as on_progress:

        def counted() -> Iterator[Sequence[ShardMember]]:
            for number, sample in enumerate(samples, start=1):
                yield sample
                on_progress(number, count)

        index = write_shards(folder, counted(), max_bytes=max_bytes)
    console().print(f'{folder}: {count:,} samples in {len(index.shards)} shards, {sum(index.lengths) / 1e6:,.1f} MB')
