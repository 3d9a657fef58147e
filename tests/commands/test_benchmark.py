"""What a model costs: FLOPs against a count by hand, and times of every stage."""

import json

import pytest
import torch
from PIL import Image

from tools.benchmark import main
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.commands.benchmark import STAGES, benchmark, count_flops, count_parameters, model_of, save
from vitdense.config.load import load_config
from vitdense.errors import ConfigError
from vitdense.heads.linear import LinearHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask

WIDTH, DEPTH, PATCH, CLASSES = 48, 3, 8, 5


def network() -> SharedNetwork:
    vit = ViT(
        'vit_tiny_patch16_224',
        patch_size=PATCH,
        img_size=32,
        timm_args=dict(embed_dim=WIDTH, depth=DEPTH, num_heads=2),
    )
    return SharedNetwork(
        vit, {'sem': dict(adapter=PlainMaps(WIDTH, PATCH), head=LinearHead((WIDTH,), (PATCH,), CLASSES))}
    )


def by_hand(height: int, width: int) -> int:
    """Two operations for each multiplication with an addition."""
    patches = (height // PATCH) * (width // PATCH)
    tokens = patches + 1
    linear = tokens * WIDTH * (3 * WIDTH + WIDTH + 4 * WIDTH + 4 * WIDTH)  # qkv, projection, and the MLP
    attention = 2 * tokens**2 * WIDTH  # scores and values
    embedding, classifier = patches * 3 * PATCH**2 * WIDTH, patches * WIDTH * CLASSES
    return 2 * (embedding + DEPTH * (linear + attention) + classifier)


@pytest.mark.parametrize('size', [(32, 32), (64, 40), (61, 33)])
def test_flops_agree_with_a_count_by_hand(size):
    padded = tuple(-(-side // PATCH) * PATCH for side in size)
    assert count_flops(network(), size) == by_hand(*padded)


def test_a_network_that_hands_on_its_parameters_is_counted_and_stays_as_it_was():
    model = model_of(load_config('configs/quickstart/shapes.py', []))  # its detector has learned queries
    assert count_flops(model.network, (64, 64)) > 1e7
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_parameters_add_up():
    counts = count_parameters(network())
    assert counts['head'] == CLASSES * (WIDTH + 1) + 2 * WIDTH and counts['adapter'] == 0
    assert counts['total'] == counts['backbone'] + counts['head']


def test_every_stage_is_timed_and_written(tmp_path):
    model = DenseModel(network(), {'sem': SemanticTask()}, classes={'semantic': list('abcde')})
    report = benchmark(model, [(32, 48), (64, 64)], device='cpu', batch=2, repeat=2)
    for row in report.rows:
        assert tuple(row.ms) == STAGES and min(row.ms[stage] for stage in STAGES if stage != 'adapter') > 0
        completed = sum(row.ms[stage] for stage in STAGES if stage not in ('load', 'draw'))
        assert row.throughput == pytest.approx(1000 / completed) and row.peak > 2**20
    assert report.rows[1].flops == by_hand(64, 64) and report.parameters['total'] > 0
    save(report, tmp_path)
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [row['size'] for row in content['rows']] == [[32, 48], [64, 64]]
    with Image.open(tmp_path / 'benchmark.png') as image:
        assert image.size[0] > 500


def test_classes_come_from_the_config_or_the_command_line():
    config = load_config('configs/semantic/linear_dinov2_s_ade20k.py', ['data_root=nowhere'])
    config.model.network.backbone.timm_args = dict(embed_dim=24, depth=2, num_heads=2)
    assert model_of(config).network.heads['sem'].num_classes == 150
    assert model_of(config, num_classes=7).network.heads['sem'].num_classes == 7
    config.test_dataloader.dataset.pop('classes')
    with pytest.raises(ConfigError, match='number of classes is not known') as caught:
        model_of(config)
    assert '--num-classes' in caught.value.fix


def test_the_tool_prints_a_table(tmp_path, capsys):
    small = ['model.network.backbone.timm_args.embed_dim=24', 'model.network.backbone.timm_args.depth=1']
    where = ['--out', str(tmp_path), '--device', 'cpu']
    main(
        [
            'configs/quickstart/shapes_segmentation.py',
            '--size',
            '64',
            '48x32',
            '--repeat',
            '1',
            *where,
            '--cfg-options',
            *small,
        ]
    )
    out = capsys.readouterr().out
    assert '64 x 64' in out and '32 x 48' in out and 'backbone ms' in out and (tmp_path / 'benchmark.png').exists()
    with pytest.raises(ConfigError, match='is no size'):
        main(['CONFIG', '--size', '12y3'])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_memory_of_a_gpu_is_counted():
    model = DenseModel(network(), {'sem': SemanticTask()}, classes={'semantic': list('abcde')})
    assert benchmark(model, [(64, 64)], device='cuda', repeat=1).rows[0].peak > 0
