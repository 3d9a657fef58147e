"""The table of published recipes, configs/recipes.toml, and the value of a config for each of its fields."""

from __future__ import annotations

import dataclasses
import inspect
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.load import load_config
from vitdense.registry import build, resolve

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / 'configs' / 'recipes.toml'
# Numbers that change no result, or only how often it is measured and saved
EXEMPT = (
    'seed',
    'sample_images',
    'checkpoint',
    'test_dataloader',
    'val_dataloader.batch_size',
    'schedule.val_interval',
)
EXEMPT += ('train_dataloader.num_workers', 'val_dataloader.num_workers')
CLASSES = {'det': 80, 'sem': 150, 'cls': 1000}  # of COCO, ADE20K and ImageNet, by task


class Row(NamedTuple):
    """One number of a published recipe."""

    field: str
    value: Any
    source: str
    tolerance: float = 1e-9


@cache
def read_table() -> dict[str, Any]:
    """Return the content of configs/recipes.toml."""
    return tomllib.loads(TABLE.read_text(encoding='utf-8'))


def config_names() -> list[str]:
    """Return the configs that can be run, as paths below configs/ without their suffix."""
    folder = ROOT / 'configs'
    files = [path for path in folder.rglob('*.py') if '_base_' not in path.parts and path.name != '__init__.py']
    return sorted(path.relative_to(folder).with_suffix('').as_posix() for path in files)


def recipes_of(config_name: str) -> list[dict[str, Any]]:
    """Return the recipes of the table that hold for a config."""
    return [
        recipe for recipe in read_table()['recipe'] if any(fnmatch(config_name, each) for each in recipe['configs'])
    ]


def rows_of(config_name: str) -> list[Row]:
    """Return all rows of a config. Raises AssertionError where two rows are about one field."""
    rows = [Row(*row) for recipe in recipes_of(config_name) for row in recipe['rows']]
    fields = [row.field for row in rows]
    assert len(set(fields)) == len(fields), (
        f'{config_name}: twice: {sorted({each for each in fields if fields.count(each) > 1})}'
    )
    return rows


def free_of(config_name: str) -> list[str]:
    """Return the fields that the sources of a config leave open."""
    return [field for recipe in recipes_of(config_name) for field, _ in recipe.get('free', ())]


@cache
def config_of(config_name: str) -> dict[str, Any]:
    """Return the resolved config, as plain dicts; the transforms are lists, whose steps the table names by class."""
    return _listed(load_config(str(ROOT / 'configs' / f'{config_name}.py')))


def _listed(node: Any, key: str = '') -> Any:
    if isinstance(node, list | tuple):
        return type(node)(_listed(item) for item in node)
    if not isinstance(node, Mapping):
        return node
    items = {name: _listed(item, name) for name, item in node.items()}
    return list(items.values()) if key == 'transforms' else items


_networks: dict[str, nn.Module] = {}


def network_of(config_name: str) -> nn.Module:
    """Return the network of a config without memory for its weights; configs of the same network share it."""
    network = without_pretrained(config_of(config_name)['model']['network'])
    for branch in network.get('branches', {}).values():
        branch['head'].pop('pretrained', None)
    key = repr(network)
    if key not in _networks:
        names = set(config_of(config_name)['model']['tasks']) & set(CLASSES)
        options = {'num_classes': {name: CLASSES[name] for name in names}} if names else {}
        with torch.device('meta'):
            _networks[key] = build(network, **options)
    return _networks[key]


class Recipe:
    """The values of a config, field by field. `cfg` may be a changed copy of the config `config_name`."""

    def __init__(self, config_name: str, cfg: Mapping[str, Any] | None = None) -> None:
        self.config_name, self.cfg = config_name, config_of(config_name) if cfg is None else cfg
        self._groups: dict[str, tuple[float, float]] | None = None

    def notices(self, path: str, rows: Sequence[Row]) -> bool:
        """Return whether a row shows that the number at `path`, which was changed, is not as published."""
        section = path.partition('.')[0]
        derived = {
            'optim_wrapper': ('lr ', 'decay ', 'batch'),
            'train_dataloader': ('batch', 'warmup '),
            'schedule': ('warmup ',),
        }
        kinds = ('begin ', 'end ') if section in ('custom_hooks', 'schedule') else ()
        kinds += derived.get(section, ())
        own = [row for row in rows if row.field == path]
        others = [row for row in rows if row.field.startswith(kinds)] if kinds else []
        return bool(self.differences(own) or self.differences(others))

    def differences(self, rows: Sequence[Row]) -> list[str]:
        """Return a sentence for each row that the config does not follow."""
        actual = []
        for row in rows:
            got = self.value(row.field)
            if not _equal(got, row.value, row.tolerance):
                actual.append(f'{row.field}: {got!r} here, {row.value!r} in {row.source}')
        return actual

    def value(self, field: str) -> Any:
        """Return what the config says about a field of the table."""
        kind, _, name = field.partition(' ')
        if field == 'batch':
            return self.images_per_step
        if field in ('mean', 'std'):
            return [255 * each for each in getattr(network_of(self.config_name), field)]
        if field == 'warmup epochs':
            images = next(recipe['images'] for recipe in recipes_of(self.config_name) if 'images' in recipe)
            return self.cfg['schedule']['warmup_iters'] * self.images_per_iteration / images
        if field in ('begin steps', 'end steps'):
            return self._annealing()[field == 'end steps']
        if kind in ('lr', 'decay') and name:
            parameter = network_of(self.config_name).get_parameter(name.removeprefix('network.'))
            return self._rates()[name][kind == 'decay'] if parameter.requires_grad else 'frozen'
        return look_up(self.cfg, field)

    @property
    def images_per_iteration(self) -> int:
        """Images of one iteration of the schedule, over all processes."""
        return self.cfg['train_dataloader']['batch_size']

    @property
    def images_per_step(self) -> int:
        """Images of one step of the optimizer, over all processes."""
        return self.images_per_iteration * self.cfg['optim_wrapper']['accumulative_counts']

    def _rates(self) -> dict[str, tuple[float, float]]:
        """Return the resolved learning rate and weight decay of every trained parameter."""
        if self._groups is None:
            wrapper = self.cfg['optim_wrapper']
            optimizer = wrapper['optimizer']
            self._groups = {
                name: (optimizer['lr'] * group.lr, optimizer['weight_decay'] if group.decayed else 0.0)
                for group in build(wrapper['groups']).groups(nn.ModuleDict({'network': network_of(self.config_name)}))
                for name in group.names
            }
        return self._groups

    def _annealing(self) -> tuple[list[float], list[float]]:
        """Return the steps at which masked attention begins to fall and has fallen to nothing, for each block."""
        hook = build(look_up(self.cfg, 'custom_hooks.MaskAnnealingHook'))
        num_blocks, steps = look_up(self.cfg, 'model.network.num_blocks'), self.cfg['schedule']['max_iters']
        if hook.begin is not None:
            return [share * steps for share in hook.begin], [share * steps for share in hook.end]
        parts = num_blocks + 2
        return tuple([(block + ahead) * steps / parts for block in range(num_blocks)] for ahead in (1, 2))


def look_up(node: Any, path: str) -> Any:
    """Return the value at a dotted path of a config; a part that is left out is the default of its class."""
    for part in path.split('.'):
        if isinstance(node, Mapping):
            node = node[part] if part in node else default_of(node, part)
        elif isinstance(node, list | tuple):
            (node,) = (item for item in node if isinstance(item, Mapping) and name_of(item) == part)
        else:
            node = getattr(node, part)
    if path.endswith('.type'):
        return name_of({'type': node})
    return node


def name_of(item: Mapping[str, Any]) -> str:
    """Return the name of the class that a part of a config makes."""
    return item['type'].__name__ if isinstance(item['type'], type) else str(item['type']).rpartition('.')[2]


def default_of(node: Mapping[str, Any], part: str) -> Any:
    """Return the default of the argument `part` of the class of `node`; of what is made there, the attribute.

    Raises KeyError where there is neither.
    """
    if 'type' not in node:
        raise KeyError(part)
    kind = resolve(node['type'])
    if isinstance(kind, type) and issubclass(kind, nn.Module) and part not in inspect.signature(kind).parameters:
        raise KeyError(f'{kind.__name__} has no argument {part}')
    created = {'num_classes': CLASSES['det']} if node.get('denoising') else {}
    if dataclasses.is_dataclass(kind) or part not in inspect.signature(kind).parameters:
        return getattr(build(dict(node), **created), part)
    default = inspect.signature(kind).parameters[part].default
    if default is None and part in ('matcher', 'losses', 'classification'):  # made where the class is
        return getattr(build(dict(node), **created), part)
    if default is inspect.Parameter.empty:
        raise KeyError(part)
    return default


def numbers(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every number, or sequence of numbers, of a config."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key != 'type':
                yield from numbers(value, f'{path}.{key}' if path else key)
    elif isinstance(node, list | tuple):
        if node and all(_is_number(each) for each in node):
            yield path, node
        else:
            for item in node:
                if isinstance(item, Mapping):
                    yield from numbers(item, f'{path}.{name_of(item)}')
    elif _is_number(node):
        yield path, node


def idle(path: str, cfg: Mapping[str, Any]) -> bool:
    """Return whether a number changes no result: it is exempt, or belongs to another kind of schedule."""
    schedule = cfg['schedule']
    unused = {
        'gamma': schedule['decay'] != 'step',
        'milestones': schedule['decay'] != 'step',
        'power': schedule['decay'] != 'poly',
        'min_ratio': schedule['decay'] not in ('poly', 'cosine'),
        'warmup_ratio': not schedule['warmup_iters'],
        'backbone_warmup_iters': not schedule['backbone_warmup_iters'],
    }
    section, _, name = path.partition('.')
    return path.startswith(EXEMPT) or (section == 'schedule' and unused.get(name, False))


def changed(cfg: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a copy of a config in which the number at `path` is another one."""
    if isinstance(cfg, list | tuple):
        head, _, rest = path.partition('.')
        items = ((item, isinstance(item, Mapping) and name_of(item) == head) for item in cfg)
        return type(cfg)(changed(item, rest) if wanted else item for item, wanted in items)
    head = next(key for key in cfg if path == key or path.startswith(f'{key}.'))  # a key may have dots
    rest = path[len(head) + 1 :]
    value = cfg[head]
    if rest:
        return {**cfg, head: changed(value, rest)}
    other = [_other(each) for each in value[:1]] + list(value[1:]) if isinstance(value, list | tuple) else _other(value)
    return {**cfg, head: other}


def _other(value: float) -> float:
    return value / 2 if isinstance(value, float) and value else value + max(1, abs(value) // 10)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(got: Any, wanted: Any, tolerance: float) -> bool:
    if wanted == 'none':
        return got is None
    if wanted == 'decayed':
        return _is_number(got) and got > 0
    if isinstance(wanted, list):
        same = isinstance(got, list | tuple) and len(got) == len(wanted)
        return same and all(_equal(*pair, max(tolerance, 1e-6)) for pair in zip(got, wanted, strict=True))
    if _is_number(wanted):
        return _is_number(got) and math.isclose(got, wanted, rel_tol=max(tolerance, 1e-6), abs_tol=1e-12)
    return got == wanted
