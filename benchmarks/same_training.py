"""Comparison of training in two checkouts: same configs and seeds; losses of every step and final weights to the bit.

    python benchmarks/same_training.py OTHER_CHECKOUT --data ../shared/data [--steps 50] [--only quickstart mae]

Trains five configs on a CPU with one thread in each checkout, as a process of its own: the three-task quickstart, a
linear head on CamVid, the small detector, a masked autoencoder and EoMT on CamVid. Compares every column of
`metrics.csv` except times, and every tensor of `model/model.safetensors`. A change that should not alter numbers leaves
both equal; the exit code is 1 where they differ. Runs without `--data` skip the configs that need real images.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[1]
TIMES = ('steps_per_second', 'data_wait', 'learned')  # columns that differ from run to run
VIT = 'model.network.backbone.pretrained={data}/weights/vit_tiny_patch16_224_fp16.safetensors'
RUNS = {  # name: (config, options); {data} is the folder of --data
    'quickstart': ('configs/quickstart/shapes.py', ()),
    'mae': ('configs/quickstart/shapes_mae.py', ()),
    'linear': ('configs/semantic/linear_vit_ti_camvid.py', ('data_root={data}/camvid', VIT)),
    'detector': ('configs/detection/finetune_small.py', ('data_root={data}/coco_mini480', VIT)),
    'eomt': (
        'configs/semantic/eomt_vit_ti_camvid.py',
        ('data_root={data}/camvid', VIT, 'schedule.backbone_warmup_iters=0'),
    ),
}


def train(checkout: Path, config: str, options: list[str], steps: int, folder: Path) -> None:
    """Train `config` of `checkout` for `steps` steps into `folder`. Raises RuntimeError with the end of the log."""
    command = [sys.executable, str(checkout / 'tools/train.py'), str(checkout / config), '--work-dir', str(folder)]
    command += ['--device', 'cpu', '--amp', 'off', '--cfg-options', *options, f'schedule.max_iters={steps}']
    command += [f'schedule.val_interval={steps}', f'checkpoint.interval={steps}', 'schedule.warmup_iters=2']
    environment = {**os.environ, 'PYTHONPATH': str(checkout), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=checkout, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}\n' + '\n'.join((done.stdout + done.stderr).splitlines()[-15:]))


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two work directories, one line for each kind; empty when nothing does."""
    rows = [list(csv.DictReader((folder / 'metrics.csv').read_text().splitlines())) for folder in (first, second)]
    actual = [] if len(rows[0]) == len(rows[1]) else [f'{len(rows[0])} and {len(rows[1])} rows']
    for number, (one, other) in enumerate(zip(*rows, strict=False)):
        keys = [key for key in one if key not in TIMES and not key.startswith('memory')]
        unlike = [f'{key} {one[key]} / {other.get(key)}' for key in keys if one[key] != other.get(key)]
        if unlike:
            actual.append(f'row {number}, step {one["step"]}: {", ".join(unlike[:3])}')
            break
    weights = [load_file(folder / 'model/model.safetensors') for folder in (first, second)]
    names = set(weights[0]) ^ set(weights[1])
    actual += [f'tensors in one model only: {len(names)}, such as {min(names)}'] if names else []
    common = [name for name in weights[0] if name in weights[1]]
    unequal = [name for name in common if not torch.equal(weights[0][name], weights[1][name])]
    return actual + ([f'{len(unequal)} of {len(common)} tensors differ, such as {unequal[0]}'] if unequal else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('other', type=Path, help='the checkout to compare with')
    parser.add_argument('--data', type=Path, help='folder with camvid, coco_mini480 and weights')
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--only', nargs='+', choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only:
        config, options = RUNS[name]
        if options and arguments.data is None:
            print(f'{name:12} skipped: needs --data')
            continue
        filled = [option.format(data=arguments.data.resolve()) for option in options] if options else []
        with tempfile.TemporaryDirectory() as folder:
            locations = [Path(folder, side) for side in ('this', 'other')]
            for checkout, location in zip((HERE, arguments.other.resolve()), locations, strict=True):
                train(checkout, config, filled, arguments.steps, location)
            actual = differences(*locations)
        print(
            f'{name:12} {arguments.steps} steps: ' + ('equal to the bit' if not actual else '; '.join(actual)),
            flush=True,
        )
        failed += bool(actual)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
