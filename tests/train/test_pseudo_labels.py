"""Old classes in new data: predictions of the start model where labels are missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.checkpoints.test_model_config import QUICK, model_folder
from tests.data.formats.test_labelled_folder import class_folders
from tools.train import main
from vitdense.checkpoints.class_rows import extend_classes, joint_metainfo_of
from vitdense.checkpoints.run import read_checkpoint
from vitdense.config.load import load_config
from vitdense.data.segmentation import SegmentationDataset
from vitdense.errors import ConfigError
from vitdense.inference.predictor import load
from vitdense.metrics.miou import MeanIoU
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.pseudo_labels import PseudoLabels, label_scores
from vitdense.types import IGNORE, Instances, Meta, PixelOutputs, QueryOutputs, Target


class Teacher(nn.Module):
    """A model with these outputs, whatever the images are."""

    def __init__(self, task: object, outputs: object) -> None:
        super().__init__()
        self.tasks, self.outputs = {'it': task}, outputs

    def forward(self, imgs: Tensor, valid: Tensor | None = None) -> dict[str, object]:
        return {'it': self.outputs}


def test_pixels_without_label_and_of_the_background_get_certain_old_classes() -> None:
    # old classes 0 sky, 1 road, 2 car; the data labels car, 3 hole and 4 background
    probs = torch.tensor([[[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.0, 0.05, 0.95], [0.4, 0.3, 0.3]]])  # (1, 4, 3)
    logits = probs.clamp(min=1e-9).log().permute(2, 0, 1)[None]  # (1, 3, 1, 4)
    labels = PseudoLabels(
        Teacher(SemanticTask(), PixelOutputs(logits, (1, 4))),
        {'semantic': [0, 1]},
        min_scores={'semantic': [0.5] * 3},
        background=[4],
    )
    maps = [[IGNORE] * 4, [4] * 4, [3] * 4, [2] * 4]
    actual = [
        labels(torch.zeros(1, 3, 1, 4), [Target(semantic=torch.tensor([row], dtype=torch.uint8))], [Meta(0)], None)
        for row in maps
    ]
    rows = [target[0].semantic[0].tolist() for target in actual]
    assert rows == [[0, 1, IGNORE, IGNORE], [0, 1, 4, IGNORE], [3] * 4, [2] * 4]
    assert labels(torch.zeros(1, 3, 1, 4), [Target()], [Meta(0)], None) == [Target()]


def test_objects_that_overlap_no_label_become_objects() -> None:
    # old classes 0 cat and 1 dog; the data labels dog; the input has 100 x 100 pixels
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.21, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.1, 0.1, 0.1]])
    logits = torch.tensor([[3.0, -9], [2.0, -9], [4.0, -9], [-2.0, 5]])
    outputs = QueryOutputs(logits[None], boxes[None], sizes=torch.tensor([[100.0, 100.0]]))
    labels = PseudoLabels(Teacher(DetectionTask(), outputs), {'labels': [0]}, min_scores={'labels': [0.5, 0.5]})
    own = torch.tensor([[60.0, 61, 80, 80]])
    target = Target(boxes=own, labels=torch.tensor([2]), iscrowd=torch.tensor([False]))
    meta = Meta(0, orig_size=(50, 50), size=(100, 100))
    (actual,) = labels(torch.zeros(1, 3, 100, 100), [target], [meta], None)
    assert actual.labels.tolist() == [2, 0]  # a duplicate, a labelled place and a class that is labelled are left out
    assert torch.allclose(actual.boxes, torch.cat([own, torch.tensor([[10.0, 10, 30, 30]])]))
    assert actual.iscrowd.tolist() == [False, False] and actual.area is None


def test_scores_of_labels_are_those_of_the_best_f1_where_the_model_has_them() -> None:
    teacher = SimpleNamespace(head_classes={'det': ['cat', 'dog', 'emu']})
    stored = {'operating_points': {'det': {'threshold': [0.3, None, 0.7]}}}
    for score, known, expected in ((None, stored, [0.3, 0.5, 0.7]), (None, {}, [0.5] * 3), (0.2, stored, [0.2] * 3)):
        assert label_scores({'min_score': score}, known, 'det', teacher) == expected


def test_objects_with_masks_keep_them() -> None:
    class Masks:
        field = 'labels'

        def predict(self, outputs: object, metas: list[Meta]) -> list[Instances]:
            masks = torch.zeros(1, *metas[0].orig_size, dtype=torch.bool)
            masks[:, :2] = True
            return [Instances(torch.tensor([[0.0, 0, 6, 2]]), torch.tensor([0.9]), torch.tensor([0]), masks)]

    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 8, 8, dtype=torch.bool))
    meta = Meta(0, orig_size=(9, 9), size=(8, 8), image_size=(4, 6))
    (actual,) = PseudoLabels(Teacher(Masks(), None), {'labels': [0]}, min_scores={'labels': [0.5, 0.5]})(
        torch.zeros(1, 3, 8, 8), [target], [meta], None
    )
    assert actual.masks.shape == (1, 8, 8) and int(actual.masks.sum()) == 2 * 6


def test_old_classes_stand_ahead_with_their_colours_and_free_ids() -> None:
    assert extend_classes(['a', 'traffic_light'], ['sky', 'Traffic Light']) == ['a', 'Traffic Light', 'sky']
    known = {'classes': {'labels': ['a', 'b']}, 'palette': {'labels': [[1, 1, 1], [2, 2, 2]]}}
    known['category_ids'] = {'labels': [7, 8]}
    joint = joint_metainfo_of(known, {'classes': {'labels': ['c', 'b']}, 'category_ids': {'labels': [7, 9]}})
    assert joint['classes'] == {'labels': ['a', 'b', 'c']}
    assert joint['category_ids'] == {'labels': [10, 9, 7]}  # 7 is c here
    assert joint['palette']['labels'][:2] == [[1, 1, 1], [2, 2, 2]] and len(joint['palette']['labels']) == 3
    del known['category_ids']  # of a model that was converted from other programs
    joint = joint_metainfo_of(known, {'classes': {'labels': ['c', 'b']}, 'category_ids': {'labels': [1, 2]}})
    assert joint['category_ids'] == {'labels': [3, 2, 1]}


def label_maps(root: Path, names: list[str], *, classes: int = 2) -> Path:
    """Write two images of 32 pixels with label maps of these classes, one half unlabelled, and return the folder."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder in ('images', 'masks'):
            (root / folder / split).mkdir(parents=True)
        for row in range(2):
            labels = rng.integers(0, classes, (32, 32), dtype=np.uint8)
            labels[16:] = IGNORE
            Image.fromarray(labels).save(root / 'masks' / split / f'{row}.png')
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / 'images' / split / f'{row}.png')
    (root / 'classes.txt').write_text('\n'.join(names))
    return root


def test_a_data_set_takes_its_place_among_more_classes(tmp_path: Path) -> None:
    label_maps(tmp_path, ['hole', 'sky'])
    dataset = SegmentationDataset('images/val', 'masks/val', root=tmp_path, classes='classes.txt', evaluation=True)
    before = dataset[0].target.semantic
    dataset.set_classes({'semantic': ['ground', 'sky', 'hole']})
    after = dataset[0].target.semantic
    assert torch.equal(after == 2, before == 0) and torch.equal(after == 1, before == 1)
    assert torch.equal(after == IGNORE, before == IGNORE)
    assert dataset.metainfo['classes'] == {'semantic': ['ground', 'sky', 'hole']}
    metric = MeanIoU()
    metric.dataset_meta = dataset.metainfo
    metric._confusion = torch.tensor([[0, 0, 0], [5, 10, 0], [5, 0, 10]])
    scores = metric.compute_metrics([])
    assert scores['mIoU'] == pytest.approx(2 / 3)  # of sky and hole: the data does not label ground
    dataset.set_classes({'semantic': ['ground']})
    assert dataset.metainfo['classes'] == {'semantic': ['ground', 'sky', 'hole']}  # not among these: as it was


def test_a_run_keeps_the_classes_of_its_start_and_goes_on_bit_equal(tmp_path: Path) -> None:
    start = model_folder(tmp_path / 'start', 'sem')  # ground and sky
    data = label_maps(tmp_path / 'data', ['hole', 'sky'])
    old = label_maps(tmp_path / 'old', ['ground', 'sky'])
    options = ['schedule.max_iters=4', 'schedule.val_interval=4', 'schedule.warmup_iters=0', 'sample_images=0']
    options += ['train_dataloader.batch_size=2', 'checkpoint.interval=2']
    work = tmp_path / 'run'
    words = ['--model', str(start), '--data', str(data), '--keep-classes', '--old-data', str(old)]
    main([*words, '--work-dir', str(work), *QUICK, '--cfg-options', *options])
    cfg = load_config(work / 'config.py')
    assert cfg.keep_classes.weights == str(start) and cfg.keep_classes.min_score is None
    predictor = load(work / 'model', device='cpu', amp='off')
    assert predictor.metainfo['classes'] == {'semantic': ['ground', 'sky', 'hole']}
    report = json.loads((work / 'old_classes.json').read_text())
    assert set(report['means']['kept']) == {'before', 'after'} and set(report['classes']['before']) == {'ground', 'sky'}

    (work / 'step_000004.pth').rename(tmp_path / 'whole.pth'), (work / 'step_000004.pth.sha256').unlink(missing_ok=True)
    main([str(work / 'config.py'), '--work-dir', str(work), '--resume', str(work / 'step_000002.pth'), *QUICK])
    whole, resumed = (read_checkpoint(path) for path in (tmp_path / 'whole.pth', work / 'step_000004.pth'))
    assert all(torch.equal(value, resumed['state_dict'][name]) for name, value in whole['state_dict'].items())


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    class_folders(tmp_path / 'data')
    words = ['--model', str(model_folder(tmp_path / 'model', 'cls')), '--data', str(tmp_path / 'data'), *QUICK]
    words += ['--work-dir', str(tmp_path / 'run')]
    with pytest.raises(ConfigError, match='the classes of cls cannot be kept'):
        main([*words, '--keep-classes'])
    with pytest.raises(ConfigError, match='old classes are tested only where they are kept'):
        main([*words, '--old-data', str(tmp_path / 'data')])
    with pytest.raises(ConfigError, match='no trained model whose classes'):
        main(['configs/quickstart/shapes_segmentation.py', '--keep-classes', '--work-dir', str(tmp_path / 'run')])
    maps, other = label_maps(tmp_path / 'maps', ['hole', 'sky']), label_maps(tmp_path / 'other', ['earth', 'sky'])
    words = ['--model', str(model_folder(tmp_path / 'sem', 'sem')), '--data', str(maps), '--old-data', str(other)]
    with pytest.raises(ConfigError, match="the classes of 'semantic' are not the same"):  # before the first step
        main([*words, '--keep-classes', '--work-dir', str(tmp_path / 'run'), *QUICK])
