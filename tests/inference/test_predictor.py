"""The predictor: any kind of image in, a typed result of the image's own size out."""

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitdense
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.model_folder import save_model_folder
from vitdense.config.load import load_config
from vitdense.data.transforms.common import ResizeShortSide
from vitdense.errors import CheckpointError, ConfigError, DataError, DiskError
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import OPTIONS, Predictor, as_tensor
from vitdense.inference.result import Result
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.storage.weights import save_weights
from vitdense.tasks.semantic import SemanticTask
from vitdense.types import ImageClass, Instances, SemanticMap

CLASSES = ['sky', 'grass', 'straße']


def tiny_model(seed: int = 0) -> DenseModel:
    torch.manual_seed(seed)
    network = SharedNetwork(
        ViT('vit_tiny_patch16_224', patch_size=8, img_size=32, timm_args=dict(embed_dim=24, depth=2, num_heads=2)),
        {'sem': dict(adapter=PlainMaps(24, 8), head=LinearHead((24,), (8,), 3, norm='none'))},
    )
    return DenseModel(network, {'sem': SemanticTask()}, classes={'semantic': CLASSES})


def saved(folder: Path, model: DenseModel, **more: Any) -> Path:
    """Save `tiny_model` as training leaves it."""
    recipe = dict(
        type='vitdense.model.DenseModel',
        network=dict(
            type='vitdense.networks.shared.SharedNetwork',
            backbone=dict(
                type='vitdense.backbones.vit.ViT',
                name='vit_tiny_patch16_224',
                patch_size=8,
                img_size=32,
                timm_args=dict(embed_dim=24, depth=2, num_heads=2),
            ),
            branches=dict(
                sem=dict(
                    adapter=dict(type='vitdense.adapters.plain.PlainMaps'),
                    head=dict(type='vitdense.heads.linear.LinearHead', norm='none'),
                )
            ),
        ),
        tasks=dict(sem=dict(type='vitdense.tasks.semantic.SemanticTask')),
    )
    metainfo = {'classes': {'semantic': CLASSES}}
    save_model_folder(folder, recipe, model.state_dict(), metainfo=metainfo, **more)
    return folder


@pytest.fixture(scope='module')
def predictor() -> Predictor:
    return Predictor(tiny_model(), device='cpu', amp='off')


def image(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_every_kind_of_image_gives_the_same_prediction(predictor, tmp_path):
    array = image()
    Image.fromarray(array).save(tmp_path / 'a.png')
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [array, tensor, Image.fromarray(array), tmp_path / 'a.png', str(tmp_path / 'a.png')]
    results = [predictor(kind) for kind in kinds]
    for result in results:
        assert isinstance(result['sem'], SemanticMap)
        assert result['sem'].labels.shape == (40, 56) and result['sem'].labels.dtype == torch.uint8
        assert torch.equal(result['sem'].labels, results[0]['sem'].labels)
        assert np.array_equal(result.image, array)
    assert len(results[0]['sem'].labels.unique()) > 1  # not a trivial prediction
    assert results[3].path == str(tmp_path / 'a.png') and results[0].path == ''


def test_the_prediction_is_that_of_the_parts(predictor):
    array = image(40, 56)
    img = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (
        torch.tensor(value).view(1, 3, 1, 1) for value in (predictor.model.network.mean, predictor.model.network.std)
    )
    with torch.no_grad():
        logits = predictor.model.network((img - mean) / std)['sem'].logits
        logits = torch.nn.functional.interpolate(logits, (40, 56), mode='bilinear')
    assert (logits[0].argmax(0) == predictor(array)['sem'].labels).float().mean() > 0.999


def test_exif_is_honoured(predictor):
    array = image()
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(array)))  # as a camera held upright stores it
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info['exif'] = exif.tobytes()
    result = predictor(turned)
    assert np.array_equal(result.image, array)


def test_grey_and_alpha_are_understood():
    grey = image()[..., 0]
    expected = torch.from_numpy(np.repeat(grey[None], 3, axis=0))
    assert torch.equal(as_tensor(grey), expected)
    assert torch.equal(as_tensor(grey[..., None]), expected)
    alpha = np.concatenate([image(), image()[..., :1]], axis=2)
    assert torch.equal(as_tensor(alpha), as_tensor(image()))


@pytest.mark.parametrize(
    'image',
    [
        image().astype(np.float32) / 255,
        image().transpose(2, 0, 1),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        {'path': 'a.jpg'},
    ],
    ids=['float', 'channels first', 'empty', 'float tensor', 'tensor channels last', 'dict'],
)
def test_what_is_no_image_is_a_data_error(predictor, image):
    with pytest.raises(DataError, match='is not an image') as caught:
        predictor(image)
    assert caught.value.fix


@pytest.mark.faults
def test_a_broken_file_is_named(predictor, tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    with pytest.raises(DataError, match='bad.jpg'):
        predictor(tmp_path / 'bad.jpg')


def test_a_list_is_batched_by_size_and_keeps_its_order(predictor):
    arrays = [image(40, 56, 0), image(48, 48, 1), image(40, 56, 2), image(40, 56, 3)]
    sizes = []
    handle = predictor.model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    results = predictor(arrays)
    handle.remove()
    assert sizes == [3, 1]
    for array, result in zip(arrays, results, strict=True):
        assert np.array_equal(result.image, array)
        agree = (result['sem'].labels == predictor(array)['sem'].labels).float().mean()
        assert agree > 0.999
    predictor.batch_size = 2
    handle = predictor.model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    predictor(arrays)
    handle.remove()
    predictor.batch_size = 8
    assert sizes[2:] == [2, 1, 1]


def test_transforms_change_the_input_of_the_network_not_the_size_of_predictions():
    predictor = Predictor(tiny_model(), transforms=[dict(type=ResizeShortSide, size=64)], device='cpu', amp='off')
    recorded = []
    predictor.model.network.register_forward_pre_hook(lambda _, inputs: recorded.append(tuple(inputs[0].shape)))
    assert predictor(image(32, 48))['sem'].labels.shape == (32, 48)
    assert recorded == [(1, 3, 64, 96)]


def test_a_result_is_drawn_saved_and_summarised(predictor, tmp_path):
    result = predictor(image())
    path = result.save(tmp_path / 'new' / 'overlay.png')
    assert np.array_equal(np.asarray(Image.open(path)), result.draw())
    shares = result.summary()['sem']
    assert sum(shares.values()) == pytest.approx(1) and set(shares) <= set(CLASSES)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    json.dumps(result.summary())
    assert str(result).startswith('sem: ')
    assert set(result.times) == {'load', 'preprocess', 'network', 'postprocess'}
    assert all(seconds >= 0 for seconds in result.times.values()) and result.times['network'] > 0


def test_summaries_of_the_other_kinds():
    meta = {'classes': {'image_label': ['cat', 'dog'], 'labels': ['car', 'bus']}}
    predictions = {
        'cls': ImageClass(torch.tensor([0.25, 0.75])),
        'det': Instances(torch.zeros(3, 4), torch.ones(3), torch.tensor([1, 1, 0])),
    }
    result = Result(image(), predictions, meta)
    assert result.summary() == {'cls': {'dog': 0.75, 'cat': 0.25}, 'det': {'bus': 2, 'car': 1}}
    assert str(result) == 'cls: dog 75 %, cat 25 %; det: bus 2, car 1'


def test_objects_of_low_score_are_neither_counted_nor_listed():
    boxes, scores = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([0.9, 0.2])
    actual = {'det': Instances(boxes, scores, torch.tensor([1, 0]))}
    result = Result(image(), actual, {'classes': {'labels': ['car', 'bus']}})
    assert result.summary() == {'det': {'bus': 1}} and result.summary(min_score=0.1) == {'det': {'bus': 1, 'car': 1}}
    (bus,) = result.objects()['det']
    assert bus == {'name': 'bus', 'class_id': 1, 'score': pytest.approx(0.9), 'box': [1, 2, 3, 4]}
    assert len(result.objects(min_score=0)['det']) == 2


def test_objects_have_the_ids_of_the_annotation_file_where_the_model_has_them():
    actual = {'det': Instances(torch.zeros(3, 4), torch.ones(3), torch.tensor([1, 0, 2]))}
    names = {'classes': {'labels': ['car', 'bus']}, 'category_ids': {'labels': [3, None]}}
    ids = [(each['class_id'], each.get('category_id')) for each in Result(image(), actual, names).objects()['det']]
    assert ids == [(1, None), (0, 3), (2, None)]  # the last is a class without a name


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'conf': 0.5}, "there is no option 'conf'"),
        ({'devise': 'cpu'}, "did you mean 'device'"),
        ({'batch_size': '8'}, "batch_size='8' is not allowed"),
        ({'batch_size': 0}, 'batch_size=0 is not allowed'),
        ({'tile': 512.5}, 'tile=512.5 is not allowed'),
        ({'max_pixels': True}, 'max_pixels=True is not allowed'),
        ({'amp': 'fast'}, "amp='fast' is not allowed"),
        ({'device': ['cpu']}, 'device='),
        ({'device': 97}, "there is no device 'cuda:97'"),
    ],
)
def test_wrong_options_are_config_errors(option, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        Predictor(tiny_model(), **option) if next(iter(option)) in OPTIONS else vitdense.load(tmp_path, **option)
    assert caught.value.fix and caught.value.why


def test_a_range_is_that_of_the_validation_data_or_of_the_caller(tmp_path):
    levels = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / 'a.png')
    model = tiny_model()
    saved(tmp_path / 'model', model, extra={'value_range': [0, 4095]})
    kinds = (tmp_path / 'a.png', Image.open(tmp_path / 'a.png'), levels, levels.astype(np.float32))
    expected = (levels / 4095 * 255 + 0.5).astype(np.uint8)
    for kind in kinds:
        assert (vitdense.load(tmp_path / 'model')(kind).image == expected[..., None]).all()
    assert vitdense.load(tmp_path / 'model', value_range=(0, 8190))(kinds[0]).image.max() == 128
    assert vitdense.load(tmp_path / 'model', value_range=None)(kinds[0]).image.max() == 16
    assert Predictor(model, value_range=(0, 4095))(kinds[0]).image.max() == 255
    with pytest.raises(ConfigError, match='value_range'):
        Predictor(model, value_range=(5, 5))
    with pytest.raises(DataError, match='value_range'):
        Predictor(model)(levels)
    folder = tmp_path / 'model/model.json'
    folder.write_text(folder.read_text().replace('4095', '-1'))
    with pytest.raises(CheckpointError, match='model folder'):
        vitdense.load(tmp_path / 'model')


def test_files_that_cannot_be_written(predictor, tmp_path):
    result = predictor(image())
    with pytest.raises(ConfigError, match='a.xyz'):
        result.save(tmp_path / 'a.xyz')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DiskError):
        result.save(tmp_path / 'file' / 'a.png')


def test_the_model_is_left_in_evaluation_and_without_gradients(predictor):
    assert not predictor.model.training
    result = predictor(image())
    assert not result['sem'].labels.requires_grad
    assert not predictor.model.network._forward_hooks and not predictor.model.network._forward_pre_hooks


def test_a_missing_device_is_a_config_error():
    if torch.cuda.is_available():
        pytest.skip('there is one')
    with pytest.raises(ConfigError, match='cuda'):
        Predictor(tiny_model(), device='cuda')


def test_a_config_and_its_weights_predict_as_the_model_does(tmp_path):
    config = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart' / 'shapes_segmentation.py'
    cfg = load_config(config)
    classes = build(cfg.test_dataloader.dataset).metainfo['classes']
    torch.manual_seed(1)
    model = build(cfg.model, classes=classes)
    save_weights(tmp_path / 'weights.safetensors', model.state_dict())
    array = image(64, 64)
    from_files = Predictor.from_config(config, tmp_path / 'weights.safetensors', device='cpu', amp='off')
    assert from_files.metainfo['classes'] == classes and from_files.metainfo['palette']
    expected = Predictor(model, device='cpu', amp='off')(array)
    assert torch.equal(from_files(array)['sem'].labels, expected['sem'].labels)


def test_a_folder_that_is_no_model_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match='model folder'):
        vitdense.load(tmp_path)


@pytest.mark.parametrize('path', [None, 3, b'model', ['model'], ''])
def test_what_names_no_folder_is_a_config_error(path):
    with pytest.raises(ConfigError, match='model_dir='):
        vitdense.load(path)


def test_a_tiled_image_is_looked_at_in_windows_of_its_own_pixels():
    model, recorded = tiny_model(), []
    model.network.register_forward_pre_hook(lambda _, args: recorded.append(tuple(args[0].shape)))
    tiled = Predictor(model, transforms=[ResizeShortSide(size=16)], device='cpu', amp='off', batch_size=2, tile=32)
    result = tiled(image(70, 90))
    assert result['sem'].labels.shape == (70, 90) and len(result['sem'].labels.unique()) > 1
    assert recorded == [(2, 3, 32, 32)] * 7 + [(1, 3, 32, 32)]  # 3 x 5 windows of 72 x 96 pixels, every 21
    with pytest.raises(ConfigError, match='windows are too small'):
        Predictor(tiny_model(), device='cpu', amp='off', tile=8)


def test_a_pass_that_ends_while_another_thread_times_its_own(predictor):
    """The second pass installs its hooks while the first is inside the backbone, and is still inside when it ends."""
    inside, first_done, calls = threading.Event(), threading.Event(), []

    def hold(*_):
        calls.append(threading.get_ident())
        if len(calls) == 1:
            assert inside.wait(20)
        else:
            inside.set()
            assert first_done.wait(20)

    expected = predictor(image(seed=1))['sem'].labels, predictor(image(seed=2))['sem'].labels
    handle = predictor.model.network.backbone.model.patch_embed.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predictor, image(seed=1))
        while not calls:
            assert not first.done()
        second = pool.submit(predictor, image(seed=2))
        results = [first.result(20)]
        first_done.set()
        results.append(second.result(20))
    handle.remove()
    assert len(set(calls)) == 2
    for result, labels in zip(results, expected, strict=True):
        assert torch.equal(result['sem'].labels, labels)
        assert set(result.parts) == {'backbone', 'sem'} and min(result.parts.values()) > 0


@pytest.mark.parametrize('options', [{}, {'tile': 32}], ids=['whole', 'tiled'])
def test_four_threads_get_the_predictions_of_one(options):
    model = tiny_model()
    model.network.backbone._positions.fixed = True  # tables of positions are kept, more grids than there is room for
    predictor = Predictor(model, device='cpu', amp='off', **options)
    images = [image(24 + 8 * row, 40, row) for row in range(20)]
    alone = [predictor(image)['sem'].labels for image in images]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predictor, images * 20))
    assert all(torch.equal(result['sem'].labels, alone[row % 20]) for row, result in enumerate(results))


def test_threads_may_share_an_image_that_pillow_has_not_decoded_yet():
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(
        content, 'PNG', exif=exif
    )
    expected = as_tensor(Image.open(content))
    assert expected.shape == (3, 400, 300)  # turned upright
    for _ in range(10):
        image = Image.open(content)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(actual, expected) for actual in pool.map(as_tensor, [image] * 4))


def test_a_generator_of_images_gives_a_generator_of_results_and_reads_few_ahead(predictor):
    read = []

    def images():
        for seed in range(20):
            read.append(seed)
            yield image(seed=seed)

    results = predictor(images())
    assert read == []
    first = next(results)
    assert len(read) == predictor.batch_size
    assert torch.equal(first['sem'].labels, predictor(image(seed=0))['sem'].labels)
    assert len(list(results)) == 19 and len(read) == 20


@pytest.mark.parametrize(
    'error',
    [torch.OutOfMemoryError('full'), RuntimeError('DefaultCPUAllocator: not enough memory')],
    ids=['GPU', 'CPU'],
)
def test_a_batch_that_does_not_fit_the_memory_is_halved(error):
    predictor = Predictor(tiny_model(), device='cpu', amp='off', batch_size=8)
    sizes = []

    def limited(_, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise error

    predictor.model.network.register_forward_pre_hook(limited)
    images = [image(seed=seed) for seed in range(8)]
    results = predictor(images)
    assert sizes == [8, 4, 2, 2, 4, 2, 2] and predictor.batch_size == 2
    alone = [predictor(img)['sem'].labels for img in images]
    assert all(torch.equal(result['sem'].labels, labels) for result, labels in zip(results, alone, strict=True))


def test_a_predictor_names_its_classes_and_warms_up(predictor):
    assert predictor.classes == {'sem': CLASSES}
    sizes = []
    handle = predictor.model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    predictor.warm_up((48, 64))
    handle.remove()
    assert sizes == [(1, 3, 48, 64)]


def test_prediction_needs_no_trainer_no_metrics_and_no_mmengine(tmp_path):
    """They would double the time from the start of a process to its first prediction."""
    code = f"""
import sys, numpy, vitdense
vitdense.load({str(saved(tmp_path / 'model', tiny_model()))!r}, device='cpu')(numpy.zeros((40, 56, 3), numpy.uint8))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert 'vitdense.inference.predictor' in loaded
    assert not loaded & {
        'mmengine',
        'transformers',
        'scipy',
        'matplotlib',
        'vitdense.train',
        'vitdense.metrics',
        'rich',
    }
