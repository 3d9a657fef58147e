"""Configs reach what they promise. Minutes: `pytest -m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_shapes_detection_reaches_its_aim(tmp_path: Path) -> None:
    command = [sys.executable, 'tools/train.py', 'configs/quickstart/shapes_detection.py', '--work-dir', str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert json.loads((tmp_path / 'metrics.json').read_text())['det/AP'] >= 0.60


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_shapes_reach_three_aims_at_once(tmp_path: Path) -> None:
    command = [sys.executable, 'tools/train.py', 'configs/quickstart/shapes.py', '--work-dir', str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    scores = json.loads((tmp_path / 'metrics.json').read_text())
    assert scores['det/AP'] >= 0.45 and scores['sem/mIoU'] >= 0.70 and scores['cls/top1'] >= 0.90


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_eight_images_of_coco_are_overfitted(tmp_path: Path, shared: Path) -> None:
    command = [sys.executable, 'tools/train.py', 'configs/detection/overfit_small.py', '--work-dir', str(tmp_path)]
    weights = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    options = [
        f'data_root={shared / "coco_mini480"}',
        f'model.network.backbone.pretrained={weights}',
        'model.network.backbone.name=vit_tiny_patch16_224',
    ]
    subprocess.run([*command, '--cfg-options', *options], cwd=ROOT, check=True, capture_output=True)
    assert json.loads((tmp_path / 'metrics.json').read_text())['det/AP50'] >= 0.95
