"""The tools as a user runs them: as programs."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.commands import parser as commandline

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    'model.network.backbone.timm_args.embed_dim=24',
    'model.network.backbone.timm_args.depth=1',
    'model.network.backbone.patch_size=16',
    'train_dataloader.batch_size=2',
    'val_dataloader.dataset.num_images=4',
    'test_dataloader.dataset.num_images=4',
    'val_dataloader.batch_size=2',
    'schedule.max_iters=6',
    'schedule.val_interval=3',
    'schedule.warmup_iters=1',
    'checkpoint.interval=3',
    'sample_images=2',
)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'VITDENSE_DEBUG': '', **more}


def start(tool: str, *arguments: str, cwd: Path, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tool: str, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    process = start(tool, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train(cwd: Path, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    quick = str(ROOT / 'configs/quickstart/shapes_segmentation.py')
    return run(
        'train.py', quick, '--amp', 'off', '--workers', '0', *arguments, '--cfg-options', *SMALL, *options, cwd=cwd
    )


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'cli.py', 'evaluate.py', 'check_data.py', 'merge_heads.py'])
def test_help_is_immediate(tool, tmp_path):
    code = (
        'import runpy, sys\n'
        f"sys.argv = ['{tool}', '--help']\n"
        'try:\n'
        f"    runpy.run_path(r'{ROOT / 'tools' / tool}', run_name='__main__')\n"
        'except SystemExit as left:\n'
        '    assert not left.code, left.code\n'
        "print(sorted({'torch', 'timm', 'mmengine', 'cv2', 'numpy'} & set(sys.modules)))\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'
    assert 'usage' in done.stdout and time.perf_counter() - began < 5  # under a second when nothing else runs


def test_train_then_the_commands_that_it_prints(tmp_path):
    code, out, err = train(tmp_path)
    assert code == 0, err
    folder = tmp_path / 'work_dirs' / 'shapes_segmentation'
    for name in ('labels.jpg', 'predictions.jpg', 'curves.png', 'metrics.csv', 'best.pth', 'model/model.json'):
        assert (folder / name).stat().st_size > 0
    assert 'background' in out and 'step 6/6' in out and 'trained parts' in out
    commands = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith('  ') and 'python' in line]
    assert [Path(command[0]).name for command in commands] == ['test.py', 'demo.py']

    tool, *arguments = commands[0]
    code, out, err = run(
        Path(tool).name, *arguments, '--workers', '0', '--out', 'out', '--show-dir', 'show', cwd=tmp_path
    )
    assert code == 0, err
    scores = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    best = json.loads((folder / 'metrics.json').read_text())['best']
    assert {key: best[key] for key in scores} == scores and {'sem/mIoU', 'sem/aAcc', 'sem/mAcc'} <= scores.keys()
    maps = sorted((tmp_path / 'out' / 'sem').glob('*.png'))
    assert len(maps) == len(list((tmp_path / 'show').glob('*.jpg'))) == 4
    assert Image.open(maps[0]).mode == 'L' and Image.open(maps[0]).size == (64, 64)

    code, out, err = train(tmp_path)  # again: the earlier run is kept
    assert code == 0 and (folder / 'earlier-1' / 'best.pth').exists() and 'moved to' in out
    code, out, err = train(tmp_path, '--resume', options=('schedule.max_iters=8',))
    assert code == 0 and 'step 6' in out and (folder / 'step_000008.pth').exists()


def test_a_run_that_cannot_begin_leaves_the_earlier_one_in_its_place(tmp_path):
    folder = tmp_path / 'work_dirs' / 'shapes_segmentation'
    folder.mkdir(parents=True)
    for name in ('metrics.csv', 'best.pth', 'log.txt'):
        (folder / name).write_text('earlier')
    code, out, err = train(tmp_path, options=('schedule.max_iters=many',))
    assert code == 2 and 'max_iters' in err
    assert sorted(path.name for path in folder.iterdir()) == ['best.pth', 'log.txt', 'metrics.csv']
    assert {path.read_text() for path in folder.iterdir()} == {'earlier'}


def test_dry_run_leaves_nothing(tmp_path):
    code, out, err = train(tmp_path, '--dry-run')
    assert code == 0, err
    assert 'dry run: loss' in out and 'training step' in out and 'GiB' in out and 'Warning' not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['train.py', 'configs/quickstart/shape.py'], 2, 'error[config]: no config'),
        (['train.py'], 2, 'neither CONFIG nor --model MODEL'),
        (['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--resum'], 2, "did you mean '--resume'"),
        (
            ['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--cfg-options', 'sead=1'],
            2,
            "did you mean 'seed'",
        ),
        (
            ['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--resume', 'nothing'],
            3,
            'no checkpoint at',
        ),
        (
            ['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--weights', 'nothing.pth'],
            3,
            'nothing.pth',
        ),
        (['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--device', 'cuda:99'], 2, 'no device'),
        (['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--device', 'gpu'], 2, "no device 'gpu'"),
        (
            ['train.py', ROOT / 'configs/quickstart/shapes_segmentation.py', '--work-dir', '/dev/null/x'],
            7,
            'cannot make the folder',
        ),
        (['test.py', ROOT / 'configs/quickstart/shapes_segmentation.py', 'nothing.pth'], 3, 'nothing.pth'),
        (['cli.py', 'trian'], 2, "did you mean 'train'"),
    ],
)
def test_mistakes_are_explained_in_one_block(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool, *words = map(str, arguments)
    spec = importlib.util.spec_from_file_location(f'tool_{tool[:-3]}', ROOT / 'tools' / tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as left:  # as the programs do it, without the seconds that a new process takes
        commandline.run(module.dispatch if tool == 'cli.py' else module.main, words)
    err = capsys.readouterr().err
    assert left.value.code == code, err
    assert message in err and '  fix:' in err and 'Traceback' not in err


@pytest.mark.faults
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_resume_goes_on(number, code, tmp_path):
    options = ('schedule.max_iters=100000', 'schedule.val_interval=100000')
    quick = str(ROOT / 'configs/quickstart/shapes_segmentation.py')
    arguments = (quick, '--amp', 'off', '--workers', '1', '--cfg-options', *SMALL, *options)
    process = start('train.py', *arguments, cwd=tmp_path)
    folder = tmp_path / 'work_dirs' / 'shapes_segmentation'
    deadline = time.monotonic() + 200
    while not list(folder.glob('step_*.pth')):  # it is training
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    assert f'{signal.Signals(number).name}: saved at step' in out
    step = int((folder / 'last_checkpoint').read_text().strip()[len('step_') : -len('.pth')])
    code, out, err = train(tmp_path, '--resume', options=(f'schedule.max_iters={step + 2}',))
    assert code == 0, err
    assert f'step {step + 2}/{step + 2}' in out


@pytest.mark.faults
def test_two_processes_train_one_model(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    quick = str(ROOT / 'configs/quickstart/shapes_segmentation.py')
    arguments = (quick, '--device', 'cpu', '--amp', 'off', '--workers', '0', '--cfg-options', *SMALL)
    shared = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    processes = [
        start('train.py', *arguments, cwd=tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    printed = [[line for line in out.splitlines() if not line.startswith('[Gloo]')] for out, _ in results]
    assert any('trained parts' in line for line in printed[0]) and printed[1] == []
    metrics = json.loads((tmp_path / 'work_dirs' / 'shapes_segmentation' / 'metrics.json').read_text())
    assert metrics['step'] == 6 and 0 < metrics['sem/aAcc'] < 1


def test_real_ade20k_pairs_go_through_the_tools(shared, tmp_path):
    data = shared / 'ade20k_sample' / 'ADEChallengeData2016'
    options = (
        f'data_root={data}',
        f'model.network.backbone.pretrained={shared}/weights/vit_tiny_patch16_224_fp16.safetensors',
        'model.network.backbone.name=vit_tiny_patch16_224',
        'train_dataloader.dataset.images=images/validation',
        'train_dataloader.dataset.labels=annotations/validation',
        'train_dataloader.batch_size=2',
        'schedule.max_iters=5',
        'schedule.val_interval=5',
        'schedule.warmup_iters=1',
        'optim_wrapper.optimizer.lr=2e-2',
    )
    config = str(ROOT / 'configs/semantic/linear_dinov2_s_ade20k.py')
    code, out, err = run(
        'train.py', config, '--workers', '0', '--work-dir', 'run', '--cfg-options', *options, cwd=tmp_path
    )
    assert code == 0, err
    assert 'classes that do not occur are not listed' in out
    code, out, err = run('test.py', 'run/config.py', 'run/best.pth', '--workers', '0', '--out', 'out', cwd=tmp_path)
    assert code == 0, err
    scores = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    right = labelled = 0
    for path in sorted((data / 'annotations' / 'validation').glob('*.png')):
        targets = np.asarray(Image.open(path)).astype(int)
        labels = np.asarray(Image.open(tmp_path / 'out' / 'sem' / path.name)).astype(int)
        assert labels.shape == targets.shape and labels.max() < 150
        right += (labels + 1 == targets)[targets > 0].sum()  # 0 is 'other', which is no class
        labelled += (targets > 0).sum()
    assert scores['sem/aAcc'] == pytest.approx(right / labelled) and scores['sem/aAcc'] > 0.5


def test_the_format_of_a_folder_is_shown(tmp_path):
    """What `--data` recognises stands in the output, before anything is built."""
    from tests.data.formats.test_labelled_folder import roboflow_coco

    roboflow_coco(tmp_path / 'own')
    code, out, err = run('train.py', 'configs/semantic/linear_vit_ti_camvid.py', '--data', 'own', cwd=tmp_path)
    assert code == 2 and 'Roboflow COCO, train, val, test' in out and 'not for detection' in err
