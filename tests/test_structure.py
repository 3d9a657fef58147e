"""The structure of the package as rules: who imports whom, how large a folder may be, which names may repeat."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import vitdense

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'vitdense'
FILES = sorted(path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py')
BASIC = {'types', 'protocols', 'errors', 'registry', 'arguments', 'timing', 'device', 'storage'}
PARTS = {'ops', 'layers'}
MAY_IMPORT = {  # folder or file of the package -> the others that it may import, besides BASIC
    **{name: set() for name in ('types', 'protocols', 'errors', 'timing', 'storage')},
    'registry': set(),
    'arguments': set(),
    'device': set(),
    'ops': set(),
    'layers': {'ops'},
    'pretrained': set(),
    'backbones': PARTS | {'pretrained'},
    'adapters': PARTS,
    'heads': PARTS,
    'networks': PARTS | {'backbones'},
    'tasks': {'ops'},
    'test_time': {'ops'},
    'model': PARTS | {'test_time'},
    'distributed': {'checkpoints'},
    'visualize': set(),
    'video': set(),
    'metrics': {'ops', 'visualize'},
    'data': {'ops'},
    'config': {'data'},
    'checkpoints': {'backbones', 'pretrained', 'config', 'data', 'layers', 'model'},
    'dataset_checks': {'data', 'visualize'},
    'reporting': {'checkpoints', 'metrics', 'visualize'},
    'loading': {'config', 'data', 'metrics', 'reporting'},
    'replay': {'checkpoints', 'config'},
    'train': {'checkpoints', 'config', 'data', 'distributed', 'loading', 'metrics', 'model', 'replay', 'reporting'},
    'multihead': {'backbones', 'checkpoints', 'config', 'distributed', 'model', 'train'},
    'convert': {'backbones', 'pretrained', 'checkpoints', 'config', 'data', 'reporting'},
    'probing': {'config', 'data', 'heads', 'loading', 'model', 'ops', 'reporting', 'train'},
    'export': {'checkpoints', 'data', 'model', 'ops'},
    'inference': {
        'backbones', 'checkpoints', 'config', 'convert', 'data', 'export', 'layers', 'model', 'ops', 'test_time',
        'video', 'visualize',
    },
    'serving': {'data', 'inference', 'video', 'visualize'},
    'scoring': {'data', 'metrics', 'ops', 'reporting', 'visualize'},
    'commands': {
        'checkpoints', 'config', 'convert', 'data', 'distributed', 'export', 'inference', 'loading', 'metrics', 'model',
        'multihead', 'ops', 'probing', 'reporting', 'test_time', 'train', 'visualize',
    },
    '__init__': {'checkpoints', 'commands', 'inference'},
}  # fmt: skip
ALSO = {  # one file that may import one more folder
    ('adapters/vit_adapter.py', 'backbones'),  # it interacts with the ViT, so it wraps it
}
USERS_OF_MMENGINE = {
    'registry',
    'model',
    'metrics',
    'inference',
    'config',
    'checkpoints',
    'distributed',
    'reporting',
    'loading',
    'train',
}
USERS_OF_MMENGINE |= {'loading', 'multihead', 'convert', 'probing', 'commands'}
USERS_OF_TIMM_MODELS = {'backbones', 'pretrained', 'networks/mae.py', 'data/timm_info.py'}
REPEATED_STEMS = {'classification', 'detection', 'reconstruction', 'masks'}  # a task, its data set, its metric
WITHOUT_SUBJECT = {'util', 'utils', 'misc', 'core', 'helpers', 'necks', 'engine'}
MAX_LINES = 2500  # of a folder, without the folders below it
MOST_FILE_LINES, MOST_FUNCTION_LINES = 350, 50  # of a file, and of a function without its decorators
MAX_FILES = 8  # in the package itself
CORE = {'types', 'protocols', 'model', 'networks', 'heads', 'adapters', 'backbones', 'layers', 'tasks', 'ops'}
KERNELS = {PACKAGE / 'ops/deform_attn'}
MOST_CORE_LINES = 5500  # of code, comments included
PROBES = {  # uses of hasattr and getattr in a file, and what for: objects of others, or names known only when it runs
    'arguments.py': (1, 'attributes of a part by name, in its own check'),
    'backbones/positions.py': (3, "rotary positions, which only some of timm's ViTs have"),
    'backbones/relative.py': (1, "the attention of timm's blocks, which some keep in a submodule"),
    'backbones/vit.py': (2, "tokens and layers that only some of timm's ViTs have"),
    'config/checks.py': (2, 'any class of the user that a config names'),
    'config/load.py': (1, 'defaults of a dataclass by field name'),
    'config/own_data.py': (2, 'the dotted path of any class'),
    'config/sections.py': (1, 'fields of nodes of a syntax tree'),
    'config/value_types.py': (1, 'annotations of any class or function'),
    'data/coco/cache.py': (1, 'fields of os.stat_result by name'),
    'data/files/bit_depth.py': (1, "the tiles of Pillow's images, which not all have"),
    'data/formats/content.py': (1, 'fields of a dataclass by name'),
    'device.py': (1, 'os.sched_getaffinity, which only Linux has'),
    'export/graph.py': (1, 'fields of a record by name'),
    'export/verify.py': (2, 'fields of two records by name'),
    'inference/predictor.py': (2, 'an image of Pillow, which need not be imported'),
    'loading/loaders.py': (1, "the workers of torch's iterators, which not all have"),
    'loading/workers.py': (4, "private parts of torch's iterators; the errno of any error"),
    'metrics/coco_columns.py': (1, 'columns of a record by name'),
    'metrics/coco_curves.py': (1, 'precision or recall by name'),
    'pretrained/creation.py': (4, "parts that only some of timm's models have"),
    'probing/feature_cache.py': (1, 'the name of any value that has one'),
    'registry.py': (3, 'names in any module; members of any part against its protocol'),
    'reporting/console.py': (2, "the stream behind rich's, and all that it offers"),
    'storage/atomic.py': (3, 'errno and text of any error; numbers of numpy and torch'),
    'timing.py': (2, 'a thread-local value that may not be set'),
    'train/evaluation.py': (1, 'val_step or test_step of mmengine by mode'),
}


def folder_of(path: Path) -> str:
    """Return the folder of the package that a file is in, or the file itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in `source`, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def breaches(file: str, name: str) -> Iterator[str]:
    """Yield what is wrong with `file` (a path below the package) importing `name`."""
    part = Path(file).parts[0].removesuffix('.py')
    top, *rest = name.split('.')
    if top == 'mmengine' and part not in USERS_OF_MMENGINE:
        yield f'{part} must work without mmengine'
    if top == 'timm' and rest[:1] != ['layers'] and not {part, file} & USERS_OF_TIMM_MODELS:
        yield f'only backbones know the models of timm, not {file}'
    if top in ('tools', 'configs') or (top == 'vitdense' and rest[:1] in (['tools'], ['configs'])):
        yield f'nothing in the library imports {name}'
    elif top == 'vitdense' and rest and rest[0] in MAY_IMPORT and rest[0] != part:
        allowed = MAY_IMPORT[part] | (BASIC if part not in BASIC else BASIC - {'registry', 'device'})
        if rest[0] not in allowed and (file, rest[0]) not in ALSO:
            yield f'{part} imports {rest[0]}'


@pytest.mark.parametrize('path', [*FILES, PACKAGE / '__init__.py'], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_its_folder_may(path):
    part = folder_of(path)
    assert part in MAY_IMPORT, f'{part} is not in the table: add it, with as few imports as it needs'
    file = path.relative_to(PACKAGE).as_posix()
    assert [fault for name in imports(path.read_text()) for fault in breaches(file, name)] == []


@pytest.mark.parametrize(
    ('file', 'line'),
    [
        ('heads/linear.py', 'from vitdense.backbones.vit import ViT'),
        ('tasks/semantic.py', 'from vitdense.heads.linear import LinearHead'),
        ('data/segmentation.py', 'import vitdense.model'),
        ('test_time/sliding_window.py', 'def late():\n    from vitdense.tasks.semantic import SemanticTask'),
        ('heads/linear.py', 'from mmengine.model import BaseModule'),
        ('tasks/semantic.py', 'import mmengine'),
        ('adapters/plain.py', 'from vitdense.backbones.vit import ViT'),
        ('heads/linear.py', 'import timm.models'),
        ('train/trainer.py', 'from vitdense.configs.quickstart import shapes'),
        ('train/trainer.py', 'from vitdense.probing.probe import probe'),
        ('inference/predictor.py', 'from vitdense.train.runner import DenseRunner'),
        ('checkpoints/run.py', 'from vitdense.train.runner import DenseRunner'),
        ('storage/weights.py', 'from vitdense.registry import build'),
    ],
)
def test_the_table_catches_what_it_forbids(file, line):
    assert [fault for name in imports(line) for fault in breaches(file, name)]


def test_no_file_is_imported_in_a_circle():
    names = {'.'.join(('vitdense', *path.relative_to(PACKAGE).with_suffix('').parts)): path for path in FILES}
    graph = {name: _targets(path, set(names)) - {name} for name, path in names.items()}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == [], 'these import each other, or one that does'


def _targets(path: Path, names: set[str]) -> set[str]:
    actual = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            actual |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return actual & names


def test_a_folder_has_one_subject():
    lines, files = Counter(), Counter()
    for path in PACKAGE.rglob('*.py'):
        lines[path.parent] += len(path.read_text().splitlines())
        files[path.parent] += path.name != '__init__.py'
        assert not {path.stem, *path.relative_to(PACKAGE).parts} & WITHOUT_SUBJECT, path
    large = {str(folder.relative_to(ROOT)): count for folder, count in lines.items() if count > MAX_LINES}
    assert large == {}
    assert files[PACKAGE] <= MAX_FILES


def test_no_file_and_no_class_has_the_name_of_another():
    stems = Counter(path.stem for path in FILES)
    assert {stem for stem, count in stems.items() if count > 1} <= REPEATED_STEMS
    classes = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
    )
    assert {name for name, count in classes.items() if count > 1} == set()


def probes(tree: ast.AST) -> int:
    """Return how many times a syntax tree asks an object whether it has an attribute."""
    calls = (node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return sum(name in ('hasattr', 'getattr') for name in calls)


def test_what_parts_may_offer_is_a_protocol():
    counts = {path.relative_to(PACKAGE).as_posix(): probes(ast.parse(path.read_text())) for path in FILES}
    assert probes(ast.parse('hasattr(a, "b") or getattr(a.b, "c", None) or a.getattr')) == 2
    assert {file: count for file, count in counts.items() if count} == {
        file: count for file, (count, _) in PROBES.items()
    }


def reads_hooks(source: str) -> bool:
    """Return whether a source has a hook class and reads the hooks of a runner, or imports another hook."""
    tree = ast.parse(source)
    bases = (ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases)
    if not any(base.endswith('Hook') for base in bases):
        return False
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    others = [name for name in imports(source) if name.startswith('vitdense.train.hooks')]
    return bool(read & {'hooks', '_hooks', 'get_hooks_info', 'register_hook'} or others)


def test_no_hook_reads_another_hook():
    assert [path for path in FILES if reads_hooks(path.read_text())] == []
    assert reads_hooks('class A(Hook):\n    def before_run(self, runner):\n        runner._hooks[0].step = 1')
    assert reads_hooks('from vitdense.train.hooks.unfreezing import UnfreezeHook\n\nclass A(UnfreezeHook): ...')


def test_files_and_functions_are_short():
    long = {}
    for path in FILES:
        source = path.read_text()
        long[path.relative_to(PACKAGE).as_posix()] = len(source.splitlines()) - MOST_FILE_LINES
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                long[f'{path.stem}.{node.name}'] = node.end_lineno - node.lineno + 1 - MOST_FUNCTION_LINES
    assert {name: lines for name, lines in long.items() if lines > 0} == {}, 'lines too many'


def code_lines(source: str) -> int:
    """Return the number of lines that are neither blank nor part of a docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docs.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and number not in docs for number, line in enumerate(source.splitlines(), 1))


def test_the_core_can_be_read():
    assert code_lines('"""a\nb"""\n\nx = 1  # c\n# d\n') == 2
    total = sum(
        code_lines(path.read_text()) for path in FILES if folder_of(path) in CORE and path.parent not in KERNELS
    )
    assert total <= MOST_CORE_LINES


def test_every_folder_is_in_the_installed_package():
    listed = ConfigParser()
    listed.read(ROOT / 'setup.cfg')
    packages = set(listed['options']['packages'].split()) - {'vitdense'}
    folders = {path.parent.relative_to(ROOT).as_posix().replace('/', '.') for path in FILES} - {'vitdense'}
    assert packages == folders


def test_a_folder_of_the_name_of_the_package_is_not_taken_for_it(tmp_path: Path):
    (tmp_path / 'vitdense').mkdir()  # as below a folder into which the repository was cloned
    code = 'import vitdense, vitdense.tools.train, vitdense.configs; print(vitdense.__version__)'
    actual = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert actual.stdout.strip() == vitdense.__version__, actual.stderr


def test_the_tests_mirror_the_package():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES} - {'.'}
    elsewhere = {'tools', 'recipes', 'contracts', 'faults', 'fuzz', 'properties'}  # about several folders
    ours = {path.parent.relative_to(ROOT / 'tests').as_posix() for path in (ROOT / 'tests').rglob('test_*.py')} - {'.'}
    assert ours - folders == elsewhere


def test_the_registry_imports_mmengine_only_when_it_builds_a_recipe():
    top_level = ast.parse((PACKAGE / 'registry.py').read_text()).body
    lines = [ast.unparse(node) for node in top_level if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [name for line in lines for name in imports(line)]
    assert names and not [name for name in names if name.startswith('mmengine')]


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_what_the_tools_import_late_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('vitdense'):
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            missing = [name for name in names if importlib.util.find_spec(f'{node.module}.{name}') is None]
            assert missing == [], f'{path.name}:{node.lineno}: {node.module} has no {missing}'
