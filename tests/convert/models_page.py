"""The tables of docs/models.md, made from that of published models.

python -m tests.convert.models_page
"""

from __future__ import annotations

from pathlib import Path

from vitdense.convert.families import FAMILIES
from vitdense.convert.published_models import TABLE, PublishedModel, RemoteFile, published_models

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'models.md'
BEGIN, END = '<!-- begin of tables -->', '<!-- end of tables -->'


def link(file: RemoteFile) -> str:
    return f'[{file.repo or file.local_name}]({file.address})'


def row(model: PublishedModel) -> str:
    files = ', '.join(link(file) for file in model.files) + (f', added to {link(model.base)}' if model.base else '')
    cells = (
        f'`{model.name}`',
        model.task,
        f'{model.classes} ({model.data})',
        f'{model.parameters / 1e6:.1f} M',
        model.result,
        f'[{Path(model.config).stem}](../{model.config})',
        files,
    )
    return f'| {" | ".join(cells)} |'


def tables() -> str:
    """Return the tables of all families."""
    parts = []
    for key, family in FAMILIES.items():
        models = [model for model in published_models().values() if model.family == key]
        sources = '; '.join(dict.fromkeys(model.source for model in models))
        parts.append(
            f'## {family.name}\n\n'
            f'Licence: {family.licence}{"" if family.free else " *"} ({family.evidence}). Results: {sources}.\n\n'
            '| name | task | classes | parameters | published | config | files |\n'
            '|---|---|---|---|---|---|---|\n' + '\n'.join(map(row, models)) + '\n\n'
        )
    return ''.join(parts)


def page() -> str:
    """Return the text of docs/models.md, whose tables are current and whose prose is as it stands there."""
    before, _, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
    return f'{before}{BEGIN}\n\n{tables()}{END}{rest.partition(END)[2]}'


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
    print(f'{PAGE} from {TABLE}')
