"""configs/README.md, made from the docstrings of the configs, their resolved values, and configs/recipes.toml.

python -m tests.recipes.readme
"""

from __future__ import annotations

import ast
import re
from typing import Any

from tests.recipes.table import ROOT, Recipe, config_names, config_of, recipes_of, rows_of

README = ROOT / 'configs' / 'README.md'
TITLES = {
    'quickstart': 'Quick start: synthetic shapes, one CPU core',
    'presets': 'Presets of `vitdense finetune FOLDER`, by task and hardware',
    'semantic': 'Semantic segmentation',
    'detection': 'Detection and instance segmentation',
    'classification': 'Classification',
    'multitask': 'Several heads on one backbone',
    'pretraining': 'Pretraining without labels',
}
HEAD = """# Configs

<!-- made by `python -m tests.recipes.readme`; a test compares it with what that writes -->

Every file here is a run: `python tools/train.py configs/FOLDER/NAME.py`. Its docstring says what it is, which number
it aims at, what it follows, where it differs from the source and why, and what it costs. `_base_` holds what several
share: models, data sets, schedules. No config needs more than three files to be read.

A name is `HEAD[_ADAPTER][_MODE]_BACKBONE_DATA[_SIZE or LENGTH]`. Head and backbone are always there; the adapter, the
mode (`frozen`, `finetuned`, `lora`) and the size of the images or the length of the run only where two
configs differ in them. Sizes, lengths and batches stand in the tables below. Presets are called by task and hardware:
they are for any data, and name data that we have as an example.

[recipes.toml](recipes.toml) has the numbers of every published recipe with the file they were read in; a test compares
it with the resolved configs, so that no number changes unnoticed. The column *numbers* counts those of a config.

*batch* is the number of images of one step of the optimizer, over all processes; *rate* the learning rate of the heads.
"""


def docstring_of(config_name: str) -> str:
    """Return the docstring of a config."""
    return ast.get_docstring(ast.parse((ROOT / 'configs' / f'{config_name}.py').read_text(encoding='utf-8')))


def aim_of(text: str) -> str:
    """Return the number that a docstring aims at, with its unit, or nothing where none is published."""
    text = re.sub(r'\s+', ' ', text)
    actual = re.search(r'Aims at (.+?)(?: \(|[.,;] |[.;]$| in (?:under|about|half) | on (?:the|\d+) )', text)
    return actual[1] if actual else ''


def cost_of(text: str) -> str:
    """Return what a docstring says about the cost."""
    actual = re.search(r'Cost: (.+?)(?:\.\s|\.$|;)', re.sub(r'\s+', ' ', text))
    return actual[1] if actual else ''


def length_of(schedule: dict[str, Any]) -> str:
    """Return the length of a run, as its config says it."""
    if schedule['max_epochs'] is not None:
        return f'{schedule["max_epochs"]} epochs'
    return f'{schedule["max_iters"]:,} steps'.replace(',', ' ')


def row_of(config_name: str) -> str:
    """Return the line of a config in the table of its folder."""
    text, cfg = docstring_of(config_name), config_of(config_name)
    name = config_name.partition('/')[2]
    first = re.sub(r'\s+', ' ', text.partition('\n\n')[0]).rstrip('.')
    rate = f'{cfg["optim_wrapper"]["optimizer"]["lr"]:g}'
    count = len(rows_of(config_name)) if recipes_of(config_name) else ''
    cells = [f'[{name}]({config_name}.py)', first, aim_of(text), Recipe(config_name).images_per_step, rate]
    cells += [length_of(cfg['schedule']), cost_of(text), count]
    return '| ' + ' | '.join(str(cell) for cell in cells) + ' |'


def make_readme() -> str:
    """Return the text of configs/README.md."""
    parts = [HEAD]
    for folder, title in TITLES.items():
        rows = [row_of(config_name) for config_name in config_names() if config_name.startswith(f'{folder}/')]
        columns = ['config', 'what', 'aims at', 'batch', 'rate', 'length', 'cost', 'numbers']
        table = ['| ' + ' | '.join(columns) + ' |', '| --- ' * len(columns) + '|', *rows]
        parts.append(f'\n## {title}\n\n' + '\n'.join(table) + '\n')
    return ''.join(parts)


if __name__ == '__main__':
    README.write_text(make_readme(), encoding='utf-8')
