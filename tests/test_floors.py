"""The direction of imports: rooms stand on floors, and a room sees only the floors below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'vitdense').rglob('*.py'))
FLOORS = {
    1: {'types', 'errors', 'registry', 'storage', 'weights', 'stopwatch', 'ops', 'layers', 'video_files', 'fonts'},
    2: {'backbones', 'heads', 'tasks', 'data', 'metrics', 'model', 'visualize', 'video'},
    3: {'adapters', 'inputs'},
    4: {'networks', 'engine', 'inference', 'features', 'demo_skips'},
    5: {'demo_records', 'benchmarking'},
    6: {'demo', '__init__'},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ALSO = {('inference', 'engine')}  # a predictor reads the model folders that the engine writes
USERS_OF_MMENGINE = {'registry', 'model', 'metrics', 'engine', 'inference'}
SUBJECTLESS = {'util', 'utils', 'misc', 'core', 'common', 'helpers', 'necks'}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / 'vitdense').parts[0].removesuffix('.py')


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in `source`, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def breaches(room: str, name: str, stem: str) -> Iterator[str]:
    """Yield what is wrong with `room` (file `stem`) importing `name`."""
    top, *rest = name.split('.')
    if top == 'mmengine' and room not in USERS_OF_MMENGINE:
        yield f'{room} must work without mmengine'
    # what timm publishes about its checkpoints is data, and one file of the data room reads it
    published = (room, stem) == ('data', 'published')
    if top == 'timm' and rest[:1] != ['layers'] and room != 'backbones' and not published:
        yield f"only backbones know timm's insides, not {room}"
    if top in ('tools', 'configs') or (top == 'vitdense' and rest[:1] in (['tools'], ['configs'])):
        yield f'nothing in the library imports {name}'
    elif top == 'vitdense' and rest and rest[0] in FLOOR_OF:
        yield from _upward(room, rest, stem)


def _upward(room: str, rest: list[str], stem: str) -> Iterator[str]:
    there = rest[0]
    if there == room or (room, there) in ALSO:
        return
    mine, theirs = FLOOR_OF[room], FLOOR_OF[there]
    if theirs > mine or (theirs == mine and mine > 1):
        yield f'{room} (floor {mine}) imports {there} (floor {theirs})'
    if room == 'adapters' and theirs == 2 and not (stem == 'vit_adapter' and rest[:2] == ['backbones', 'vit']):
        yield f'a reading adapter imports {there}; it sees features only'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_the_floors_below(path):
    room = room_of(path)
    assert room in FLOOR_OF, f'{room} has no floor: add it to the table, as low as its imports allow'
    assert [fault for name in imports(path.read_text()) for fault in breaches(room, name, path.stem)] == []


@pytest.mark.parametrize(
    ('room', 'stem', 'line'),
    [
        ('heads', 'linear', 'from vitdense.backbones.vit import ViT'),
        ('tasks', 'semantic', 'from vitdense.heads.linear import LinearHead'),
        ('data', 'segmaps', 'import vitdense.model'),
        ('ops', 'tiles', 'def late():\n    from vitdense.tasks.semantic import SemanticTask'),
        ('heads', 'linear', 'from mmengine.model import BaseModule'),
        ('tasks', 'semantic', 'import mmengine'),
        ('adapters', 'plain', 'from vitdense.backbones.vit import ViT'),
        ('heads', 'linear', 'import timm.models'),
        ('engine', 'hooks', 'from vitdense.configs.quickstart import shapes'),
    ],
)
def test_the_table_catches_what_it_forbids(room, stem, line):
    assert [fault for name in imports(line) for fault in breaches(room, name, stem)]


def test_the_registry_imports_mmengine_only_when_it_builds_a_recipe():
    top_level = ast.parse((ROOT / 'vitdense' / 'registry.py').read_text()).body
    names = [
        name
        for node in top_level
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in imports(ast.unparse(node))
    ]
    assert names and not [name for name in names if name.startswith('mmengine')]


def test_every_file_has_a_subject():
    named = [path.relative_to(ROOT) for folder in ('vitdense', 'tools') for path in (ROOT / folder).rglob('*.py')]
    assert [str(path) for path in named if SUBJECTLESS & {*path.parts, path.stem}] == []
