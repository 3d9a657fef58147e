"""FI-01, FI-02, FI-05 to FI-09, FI-11 and FI-24: broken images and annotations, and names that lead elsewhere."""

from __future__ import annotations

import builtins
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import tools.check_data as tool
from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.coco.faults import describe_corrections
from vitdense.data.coco.parse import read_coco
from vitdense.data.files.opening import UnreadableImage
from vitdense.data.sampling import InfiniteSampler, SampleIndex, SeededDataset
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.unlabelled import ImageDataset
from vitdense.dataset_checks.check_coco import check_coco
from vitdense.dataset_checks.check_label_maps import check_labels
from vitdense.errors import DataError

pytestmark = pytest.mark.faults
RING = [[10, 10, 40, 10, 40, 30, 10, 30]]
HUGE = 10**400


class Coco:
    """A COCO file over images of 80 x 60."""

    def __init__(self, root: Path, *annotations: dict, names: tuple[str, ...] = ('1.png', '2.png')) -> None:
        self.root, self.path, self.images = root, root / 'a.json', root / 'images'
        self.images.mkdir(exist_ok=True)
        rows = []
        for number, name in enumerate(names, 1):
            rows.append(dict(id=number, file_name=name, width=80, height=60))
            if '.' in name and '/' not in name and '\\' not in name and '\0' not in name:
                Image.new('RGB', (80, 60)).save(self.images / name)
        content = dict(images=rows, categories=[dict(id=4, name='cat')], annotations=annotations)
        self.path.write_text(json.dumps(content))

    def actual(self) -> dict[str, str]:
        """Return the reason of every finding by id."""
        return {finding.where: finding.reason for finding in check_coco(self.path, self.images).findings}

    def open(self, **options) -> CocoDetection:
        return CocoDetection('a.json', 'images', root=self.root, **options)


def annotation(number: int, **more) -> dict:
    plain = dict(id=number, image_id=1, category_id=4, bbox=[10, 10, 30, 20], area=600, iscrowd=0)
    return plain | dict(segmentation=RING) | more


@pytest.fixture
def pairs(tmp_path):
    """Return a data set of 200 JPEGs with label maps, of which number 7 is cut off at 60 %, and its folder."""
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'one.jpg')
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / 'one.png')
    content = (tmp_path / 'one.jpg').read_bytes()
    for number in range(200):
        cut = content[: len(content) * 6 // 10] if number == 7 else content
        (tmp_path / 'images' / f'{number:03}.jpg').write_bytes(cut)
        (tmp_path / 'labels' / f'{number:03}.png').write_bytes((tmp_path / 'one.png').read_bytes())
    return SegmentationDataset('images', 'labels', root=tmp_path, classes=['a', 'b']), tmp_path


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob('*') if path.is_file()}


def test_fi_01_a_truncated_training_image_is_replaced_by_the_seed(pairs, caplog):
    dataset, folder = pairs
    before = sums(folder)

    def epoch() -> list[str]:
        seeded = SeededDataset(dataset, 0)
        order = itertools.islice(InfiniteSampler(200, seed=0), 200)
        actual = [seeded[index].meta.image_id for index in order]
        assert seeded.num_bad == 1
        return actual

    first = epoch()
    assert caplog.text.count('images/007.jpg') == 1 and '007' not in first and len(first) == 200
    assert len(set(first)) == 199 and epoch() == first
    assert sums(folder) == before


def test_fi_02_a_truncated_image_of_an_evaluation_is_an_error(pairs):
    with pytest.raises(UnreadableImage, match='007.jpg: truncated') as caught:
        SeededDataset(pairs[0], 0, tolerate=False)[SampleIndex(0, 7)]
    assert caught.value.exit_code == 3 and '--skip-bad-eval' in caught.value.fix


def test_fi_02_unless_it_is_left_out_and_counted(trainer, tmp_path, capsys, pairs, monkeypatch):
    folder = pairs[1]
    options = (
        'schedule.max_iters=1',
        'schedule.warmup_iters=0',
        "val_dataloader.dataset={'type': 'vitdense.data.segmentation.SegmentationDataset', 'images': 'images', "
        f"'labels': 'labels', 'root': '{folder}', 'classes': ['background', 'circle', 'square', 'triangle'], "
        "'transforms': [{'type': 'vitdense.data.transforms.common.ResizeTo', 'size': 64}]}",
        'val_dataloader.batch_size=50',
        'checkpoint.best=None',
    )
    with pytest.raises(UnreadableImage, match='007.jpg'):
        trainer('strict', options).train()
    trainer('lenient', options, skip_bad_eval=True).train()
    assert 'evaluated 199/200' in capsys.readouterr().out
    assert json.loads((tmp_path / 'lenient' / 'metrics.json').read_text())['skipped_images'] == 1


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_fi_05_eight_orientations_are_one_image(tmp_path, suffix):
    upright = np.full((32, 48, 3), 200, np.uint8)
    upright[4:12, 6:22] = (220, 20, 20)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose of the upright image
    (tmp_path / 'images').mkdir()
    rows, boxes = [], []
    for number in range(1, 9):
        image = Image.fromarray(upright)
        image = image if number == 1 else image.transpose(turns[number])
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        image.save(tmp_path / 'images' / f'{number}{suffix}', exif=exif, quality=95)
        rows.append(dict(id=number, file_name=f'{number}{suffix}', width=48, height=32))
        boxes.append(annotation(number, image_id=number, bbox=[6, 4, 16, 8]))
    content = dict(images=rows, categories=[dict(id=4, name='cat')], annotations=boxes)
    (tmp_path / 'a.json').write_text(json.dumps(content))
    samples = [*map(CocoDetection('a.json', 'images', root=tmp_path).__getitem__, range(8))]
    for sample in samples:
        assert sample.target.boxes.tolist() == [[6, 4, 22, 12]]
        assert (sample.img.float() - torch.from_numpy(upright).permute(2, 0, 1)).abs().mean() <= 2


def test_fi_06_boxes_without_area_or_outside(tmp_path, caplog):
    boxes = {20: (5, 5, 0, 9), 21: (90, 5, 9, 9), 22: (70, 50, 20, 20), 23: (30, 5, -9, 9)}
    coco = Coco(tmp_path, *(annotation(number, bbox=list(box)) for number, box in boxes.items()))
    assert coco.actual().keys() >= {'20', '21', '22', '23'}
    assert tool.main([str(coco.path), str(coco.images)]) == 3
    sample = coco.open()[0]
    assert sample.target.boxes.tolist() == [[70, 50, 80, 60]]
    text = describe_corrections(read_coco(coco.path)[1], evaluation=False)
    assert 'dropped 3' in text and 'clamped 1' in text


FAULTS = {
    'NaN': dict(bbox=[float('nan'), 1, 2, 3]),
    'a word': dict(bbox=['a', 1, 2, 3]),
    'three numbers': dict(bbox=[1, 2, 3]),
    'an integer beyond float': dict(bbox=[HUGE, 1, 2, 3]),
    'polygon of NaN': dict(segmentation=[[float('nan')] * 6]),
    'polygon of inf': dict(segmentation=[[float('inf')] * 6]),
    'polygon of 1e9': dict(segmentation=[[1e9] * 6]),
    'polygon beyond float': dict(segmentation=[[HUGE] * 6]),
    'empty': dict(segmentation=[]),
    'four numbers': dict(segmentation=[[1, 2, 3, 4]]),
    'large run lengths': dict(segmentation=dict(size=[10**5, 10**5], counts=[1, 2])),
    'run lengths beyond float': dict(segmentation=dict(size=[60, 80], counts=[HUGE])),
    'iscrowd beyond float': dict(iscrowd=HUGE),
    'iscrowd of a word': dict(iscrowd='perhaps'),
    'category beyond float': dict(category_id=HUGE),
    'image beyond float': dict(image_id=HUGE),
    'area beyond float': dict(area=HUGE),
}


def test_fi_07_every_wrong_annotation_is_listed_before_any_c_code(tmp_path):
    numbers = dict(enumerate(FAULTS, 20))
    coco = Coco(tmp_path, *(annotation(number, **FAULTS[name]) for number, name in numbers.items()))
    actual = coco.actual()
    assert actual.keys() >= {str(number) for number in numbers}
    assert all(actual[str(number)] for number in numbers)
    assert tool.main([str(coco.path), str(coco.images)]) == 3
    with pytest.raises(DataError, match='cannot be used'):
        coco.open(masks=True)


@pytest.mark.parametrize(('iscrowd', 'crowd'), [('0', False), ('1', True), (False, False), (1.0, True)])
def test_fi_07_iscrowd_may_be_a_word(tmp_path, iscrowd, crowd):
    coco = Coco(tmp_path, annotation(1, iscrowd=iscrowd), annotation(2))
    assert coco.actual() == {} or not crowd
    assert coco.open(evaluation=True)[0].target.iscrowd.tolist() == [crowd, False]


def test_fi_08_corners_in_place_of_sizes(tmp_path):
    boxes = [[40 + k, 30, 60 + k, 50] for k in range(9)] + [[1, 1, 9, 9]]
    coco = Coco(tmp_path, *(annotation(number, bbox=box) for number, box in enumerate(boxes, 1)))
    assert '90% of boxes leave the image if read as xywh; they fit as xyxy' in str(coco.actual())
    assert tool.main([str(coco.path), str(coco.images)]) == 3
    with pytest.raises(DataError, match='fit as xyxy'):
        coco.open()


def test_fi_09_no_annotations_at_all(tmp_path):
    with pytest.raises(DataError, match='no annotations in a.json') as caught:
        Coco(tmp_path).open()
    assert caught.value.exit_code == 3


def test_fi_09_images_without_objects_train_every_parameter(tmp_path, one_thread):
    from tests.train.test_joint import CONFIG
    from vitdense.config.load import load_config
    from vitdense.train.build import make_trainer
    from vitdense.types import Target

    (tmp_path / 'joint.py').write_text(CONFIG)
    runner = make_trainer(load_config(tmp_path / 'joint.py'), tmp_path / 'run', device='cpu')
    model, batch = runner.model, next(iter(runner.train_dataloader))
    model.tasks = {name: task for name, task in model.tasks.items()}
    for task in model.tasks.values():
        task.datasets = None
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    more = dict(semantic=torch.zeros(64, 64, dtype=torch.uint8), image_label=torch.tensor(0))
    targets = [empty._replace(**more) for _ in batch.targets]
    imgs, targets, metas, valid = model.data_preprocessor(batch._replace(targets=targets), True)
    loss, _ = model.parse_losses(model(imgs, targets, metas, valid, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    without = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert without == []
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


def test_fi_11_labels_that_are_no_class(tmp_path):
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for number, value in enumerate((0, 7, 254, 255)):
        Image.new('RGB', (8, 8)).save(tmp_path / 'images' / f'{number}.jpg')
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / 'labels' / f'{number}.png')
    dataset = SegmentationDataset('images', 'labels', root=tmp_path, classes=list('abcd'))
    assert dataset[0] and dataset[3]
    for number, value in ((1, 7), (2, 254)):
        with pytest.raises(DataError) as caught:
            dataset[number]
        text = str(caught.value)
        assert f'{number}.png' in text and str(value) in text and '255' in text and caught.value.exit_code == 3
    report = check_labels(tmp_path / 'labels', tmp_path / 'images', classes=list('abcd'))
    assert {Path(finding.where).name for finding in report.findings} == {'1.png', '2.png'}


NAMES = ('../../etc/passwd', '/etc/passwd', 'link.png', 'a\0b', 'http://x/y.png', '..\\x.png', 'C:\\x.png')


@pytest.mark.parametrize('name', NAMES)
def test_fi_24_a_name_that_leads_out_of_the_folder_is_never_opened(tmp_path, name, monkeypatch):
    outside = tmp_path / 'secret.png'
    Image.new('RGB', (80, 60)).save(outside)
    coco = Coco(tmp_path, annotation(1), annotation(2, image_id=2), names=('1.png', 'x.png'))
    (coco.images / 'link.png').symlink_to(outside)
    content = json.loads(coco.path.read_text())
    content['images'][0]['file_name'] = name
    coco.path.write_text(json.dumps(content))
    opened: list[str] = []

    def recorder(original):
        def recorded(file, *args, **kwargs):
            opened.append(str(file))
            return original(file, *args, **kwargs)

        return recorded

    for module in (builtins, os):
        monkeypatch.setattr(module, 'open', recorder(module.open))
    with pytest.raises(DataError, match='leads out|character|backslashes'):
        dataset = coco.open()
        dataset[0]
    assert coco.actual()
    leading = [path for path in opened if '\0' in path or os.path.realpath(path) in (str(outside), '/etc/passwd')]
    assert leading == [] and opened


def test_fi_24_links_of_plain_folders_are_not_followed_out(tmp_path):
    secret = tmp_path / 'secret'
    secret.mkdir()
    Image.new('RGB', (8, 8)).save(secret / 'x.png')
    for folder in ('images/a', 'labels', 'classes/a', 'classes/b'):
        (tmp_path / folder).mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'y.png')
    Image.new('RGB', (8, 8)).save(tmp_path / 'classes' / 'a' / 'y.png')
    Image.new('RGB', (8, 8)).save(tmp_path / 'classes' / 'b' / 'y.png')
    (tmp_path / 'images' / 'file.png').symlink_to(secret / 'x.png')
    (tmp_path / 'images' / 'folder').symlink_to(secret)
    (tmp_path / 'classes' / 'a' / 'file.png').symlink_to(secret / 'x.png')
    for make in (
        lambda **options: ImageDataset('images', root=tmp_path, **options),
        lambda **options: ClassificationDataset('classes', root=tmp_path, **options),
    ):
        with pytest.raises(DataError, match='leads out'):
            make()
        assert len(make(follow_links=True)) == 3
