"""A report as one HTML file that loads nothing else: tables, findings, labelled samples, near duplicates."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.files.image_check import evenly_spaced
from vitdense.data.files.images import read_image
from vitdense.data.files.layouts import Part
from vitdense.data.segmentation import SegmentationDataset
from vitdense.dataset_checks.near_duplicates import names, near_duplicates
from vitdense.dataset_checks.report import TITLES, DataReport, Finding
from vitdense.errors import VitDenseError
from vitdense.visualize.predictions import draw_target

SAMPLES = 12  # labelled images of each split
GROUPS = 24  # of near duplicates
IN_GROUP = 4  # images of a group
LISTED = 50  # findings of a kind
HEIGHT = 220  # pixels of an image on the page
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .15rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f3f4f6 }
th { border-bottom: 1px solid #999 } .images { display: flex; flex-wrap: wrap; gap: 8px; margin: .6rem 0 }
figure { margin: 0 } figcaption { font-size: 12px; color: #555; max-width: 320px; overflow-wrap: anywhere }
img { max-height: 220px; max-width: 100% } .wrong { color: #b00020 } .odd { color: #8a5a00 } .group { margin: .8rem 0 }
"""


def page(
    root: Path,
    parts: Mapping[str, tuple[Part, DataReport]],
    across: Sequence[Finding],
    options: Mapping[str, Any],
) -> str:
    """Return the page about the data at `root`: `parts` by the name of the split, and findings between them.

    `options` are the arguments of `SegmentationDataset` for label maps.
    """
    num_errors = sum(sum(report.counts.values()) for _, report in parts.values())
    odd = len(across) + sum(len(report.warnings) for _, report in parts.values())
    body: list[str] = [
        f'<h1>{escape(str(root))}</h1>',
        f'<p>{num_errors:,} error{"s" * (num_errors != 1)}, {odd:,} warning{"s" * (odd != 1)}</p>',
        *_listed(across, 'odd'),
    ]
    for name, (part, report) in parts.items():
        body.append(f'<h2>{escape(name)}</h2>')
        body.append(_table(('', ''), report.summary))
        body += _listed(report.findings, 'wrong')
        body += _listed([finding for finding in report.warnings if finding.kind != 'similar'], 'odd')
        if report.classes:
            body.append(_table(report.header, report.classes))
        body.append(_gallery(_samples(part, options)))
    body += _groups(root, [report for _, report in parts.values()])
    head = f'<meta charset="utf-8"><title>{escape(str(root))}</title><style>{STYLE}</style>'
    return f'<!doctype html><html><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _listed(findings: Sequence[Finding], style: str) -> Iterator[str]:
    for kind in dict.fromkeys(finding.kind for finding in findings):
        some = [finding for finding in findings if finding.kind == kind]
        rows = ''.join(f'<li>{escape(finding.where)}: {escape(finding.reason)}</li>' for finding in some[:LISTED])
        more = f'<li>and {len(some) - LISTED:,} more</li>' if len(some) > LISTED else ''
        yield f'<h3 class="{style}">{escape(TITLES.get(kind, kind))}: {len(some):,}</h3><ul>{rows}{more}</ul>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [''.join(f'<td>{escape(cell)}</td>' for cell in row) for row in rows]
    head = ''.join(f'<th>{escape(cell)}</th>' for cell in header)
    return f'<table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def _samples(part: Part, options: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and labelled images of a split; none where it cannot be read as a data set."""
    try:
        dataset = _dataset(part, options)
    except VitDenseError:
        return  # the findings name the reason
    for row in evenly_spaced(len(dataset), SAMPLES):
        try:
            sample = dataset[row]
        except VitDenseError:
            continue
        yield Path(sample.meta.path).name, draw_target(sample.img, sample.target, dataset.metainfo, legend=False)


def _dataset(part: Part, options: Mapping[str, Any]) -> Any:
    if part.kind == 'coco':
        return CocoDetection(part.data, part.images or part.data.parent, split=part.split, cache=False)
    if part.kind == 'folders':
        return ClassificationDataset(part.data)
    return SegmentationDataset(part.images or part.data, part.data, **options)


def _groups(root: Path, reports: Sequence[DataReport]) -> Iterator[str]:
    """Yield the near duplicates of all splits as rows of images."""
    groups = near_duplicates({path: row for report in reports for path, row in report.fingerprints.items()})
    if groups:
        yield f'<h2>Near duplicates: {len(groups):,} group{"s" * (len(groups) != 1)}</h2>'
    for group in groups[:GROUPS]:
        yield f'<div class="group">{_gallery((names([path], root), _read(path)) for path in group[:IN_GROUP])}</div>'


def _read(path: Path) -> np.ndarray:
    return read_image(path).permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)


def _gallery(images: Iterable[tuple[str, np.ndarray]]) -> str:
    figures = [f'<figure>{_image(img)}<figcaption>{escape(name)}</figcaption></figure>' for name, img in images]
    return f'<div class="images">{"".join(figures)}</div>'


def _image(img: np.ndarray) -> str:
    from PIL import Image

    image, content = Image.fromarray(img), io.BytesIO()
    image.thumbnail((4 * HEIGHT, 2 * HEIGHT))
    image.save(content, format='JPEG', quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'
