"""Rules for the shipped config files: steps of transforms have names, and a config inherits from few files."""

import re
from pathlib import Path

import pytest

from vitdense.config.load import image_recipe, load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = [path for path in sorted(CONFIGS.rglob('*.py')) if path.name != '__init__.py']
RUNNABLE = [path for path in FILES if '_base_' not in path.parts]


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_steps_of_transforms_have_names(file):
    text = file.read_text(encoding='utf-8')
    assert not re.search(r'transforms\s*(\[\d|=\s*\[|\.(pop|append|insert)\()', text)


def test_a_step_is_changed_by_its_name_in_a_config_anywhere_and_on_the_command_line(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n'
        '    from vitdense.configs.semantic.linear_vit_ti_camvid import *\n'
        'train_dataloader.dataset.transforms.crop.update(size=(240, 240))\n'
        "del train_dataloader.dataset.transforms['color']\n"
    )
    cfg = load_config(file, ['train_dataloader.dataset.transforms.resize.ratio=(1.0, 1.0)'])
    steps = cfg.train_dataloader.dataset.transforms
    assert list(steps) == ['resize', 'crop', 'flip']
    assert steps.crop['size'] == (240, 240) and steps.resize['ratio'] == (1.0, 1.0)
    assert steps.crop['max_category_fraction'] == 0.75  # the rest of the step stays


def test_the_config_in_the_docs_can_be_loaded(tmp_path):
    text = (CONFIGS.parent / 'docs/configs.md').read_text(encoding='utf-8')
    file = tmp_path / 'roads.py'
    file.write_text(re.search(r'```python\n("""UPerNet.*?)```', text, re.DOTALL)[1])
    cfg = load_config(file)
    assert list(cfg.train_dataloader.dataset.transforms) == ['resize', 'crop', 'flip']
    assert cfg.val_dataloader.dataset.transforms.resize['size'] == 256 and cfg.schedule.max_iters == 4000


def test_transforms_of_a_model_are_a_list_with_and_without_names():
    step = {'type': 'vitdense.data.transforms.common.ResizeTo', 'size': 64}
    for transforms in ([step], {'resize': step}):
        content = {'val_dataloader': {'dataset': {'type': 'x', 'transforms': transforms}}}
        assert image_recipe(content)['transforms'] == [step]


def bases_of(file: Path) -> list[Path]:
    """Return the config files that `file` starts from."""
    actual = re.findall(r'^    from (\.+)(\S+) import', file.read_text(encoding='utf-8'), re.MULTILINE)
    return [file.parents[len(dots) - 1].joinpath(*name.split('.')).with_suffix('.py') for dots, name in actual]


def depth_of(file: Path) -> int:
    return 1 + max((depth_of(base) for base in bases_of(file)), default=0)


def test_a_config_is_read_in_three_files_at_most():
    assert all(base.is_file() for file in RUNNABLE for base in bases_of(file))
    assert {str(file.relative_to(CONFIGS)): depth for file in RUNNABLE if (depth := depth_of(file)) > 3} == {}


def test_names_are_short_and_contain_the_data_set():
    """Presets are for any data: their names have the hardware."""
    data = 'ade20k|camvid|coco|imagenet|imagenette|small|shapes|cpu|gpu'
    odd = [file.stem for file in RUNNABLE if len(file.stem) > 40 or not re.search(rf'(^|_)({data})(_|$)', file.stem)]
    assert odd == []


def test_every_base_is_used():
    """Those of `_base_/training` are for models that are described by themselves: `train.py --model`."""
    used = {base.resolve() for file in FILES for base in bases_of(file)}
    used |= set((CONFIGS / '_base_/training').glob('*.py'))
    assert {file for file in FILES if '_base_' in file.parts and file.resolve() not in used} == set()
