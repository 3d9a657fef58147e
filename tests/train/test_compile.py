"""torch.compile on the network: the same numbers, the same names, and errors that say what is missing."""

from __future__ import annotations

import copy
import importlib
import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.run import read_checkpoint
from vitdense.config.load import load_config
from vitdense.errors import ResourceError
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.reporting.history import read_rows
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.compile import compile_network, explained

CPU = torch.device('cpu')
VARIANTS = {
    'plain': (),
    'windows': (
        "+model.network.backbone.windows=dict(type='vitdense.backbones.windows.WindowPartition',size=2,global_blocks=1)",
    ),
    'lora': ("+model.network.backbone.lora=dict(type='vitdense.layers.lora.Lora',rank=2)",),
    'frozen': ('+model.network.backbone.frozen=True',),
    'checkpointing': ('+model.network.backbone.checkpointing=True',),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outputs(model, sizes, *, padded: bool) -> list[torch.Tensor]:
    """Logits and gradients for images of several sizes, full and also padded."""
    results = []
    for height, width in sizes:
        torch.manual_seed(0)
        imgs, valid = torch.randn(2, 3, height, width), torch.ones(2, height, width, dtype=torch.bool)
        valid[0, 32:] = False
        for padding in (None, valid)[: 1 + padded]:
            torch.manual_seed(1)
            logits = model.network(imgs, padding)['sem'].logits
            logits.square().mean().backward()
            results.append(logits.detach())
    return results + [value.grad for value in model.parameters() if value.requires_grad]


def compare(trainer, options, backend: str, sizes, *, padded: bool = True) -> None:
    plain, compiled = (trainer(name, options).network_model for name in ('plain', 'compiled'))
    names = list(compiled.state_dict())
    compile_network(compiled, CPU, backend=backend)
    assert list(compiled.state_dict()) == names
    for model in (plain, compiled):
        for module in model.modules():  # compiled code draws its dropout elsewhere
            if isinstance(module, torch.nn.Dropout) or 'DropPath' in type(module).__name__:
                module.eval()
                module.train = lambda mode=True: None
    for one, other in zip(*(outputs(model, sizes, padded=padded) for model in (plain, compiled)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_a_traced_network_has_the_outputs_of_the_untraced_one(trainer):
    options = VARIANTS['windows'] + VARIANTS['lora']
    compare(trainer, options, 'eager', [(64, 64), (48, 80)], padded=False)


@pytest.mark.slow
@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS)
def test_every_traced_network_has_the_outputs_of_the_untraced_one(trainer, options):
    compare(trainer, options, 'eager', [(64, 64), (64, 48), (48, 64), (80, 48)])


@pytest.mark.slow
def test_a_compiled_network_has_the_outputs_of_the_uncompiled_one(trainer):
    compare(trainer, VARIANTS['windows'] + VARIANTS['lora'], 'inductor', [(64, 64)], padded=False)


def test_one_image_size_is_one_graph(trainer):
    network = trainer('run', VARIANTS['windows'] + VARIANTS['lora']).network_model.network.eval()
    assert torch._dynamo.explain(network)(torch.randn(1, 3, 64, 64)).graph_count == 1


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_predictor_times_a_compiled_network_as_a_whole_and_in_one_graph(trainer, wrapped):
    counter, model = CompileCounter(), trainer('run').network_model
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    assert 'backbone' in Predictor(model, device='cpu', amp='off')(image).parts
    if wrapped:
        model.network = torch.compile(model.network, backend=counter)
    else:
        compile_network(model, CPU, backend=counter)
    predictor = Predictor(model, device='cpu', amp='off')
    predictor(image)
    before = counter.frame_count
    results = [predictor(image) for _ in range(3)]
    assert before == counter.frame_count == 1 + (not wrapped)  # one graph of the network, and the tiny probe
    assert all(result.parts == {} and result.times['network'] > 0 for result in results)


@pytest.mark.slow
def test_the_flag_trains_resumes_and_tests(config_file, tmp_path, one_thread, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test = (importlib.import_module(f'tools.{name}') for name in ('train', 'test'))
    shared = [str(config_file), '--device', 'cpu', '--workers', '0', '--compile']
    train.main([*shared, '--work-dir', 'run', '--cfg-options', 'schedule.max_iters=4'])
    train.main([*shared, '--work-dir', 'run', '--resume'])
    content = read_checkpoint(tmp_path / 'run' / 'step_000008.pth')
    assert not any('_orig_mod' in name for name in content['state_dict'])
    assert all(math.isfinite(row['loss']) for row in read_rows(tmp_path / 'run' / 'metrics.csv') if row.get('loss'))
    test.main([shared[0], 'run/best.pth', *shared[1:], '--work-dir', 'scores'])
    assert (tmp_path / 'scores' / 'metrics.json').exists()


def test_where_nothing_can_be_compiled_the_run_does_not_begin(trainer, config_file, monkeypatch, tmp_path):
    from torch._inductor.exc import InvalidCxxCompiler

    def no_compiler(function, **options):
        def call(*args):
            raise InvalidCxxCompiler()

        return call

    monkeypatch.setattr(torch, 'compile', no_compiler)
    with pytest.raises(ResourceError, match='torch.compile failed') as caught:
        trainer('run', compiled=True)
    assert 'No working C++ compiler found' in caught.value.why and 'leave --compile out' in caught.value.fix
    assert caught.value.exit_code == 6


def test_other_errors_pass_unchanged(config_file):
    for error in (RuntimeError('mine'), ValueError('mine')):
        with pytest.raises(type(error), match='mine'), explained():
            raise error
    assert load_config(config_file).amp == 'off'


def test_every_set_of_branches_is_compiled():
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='none', num_classes=2))
    vit = ViT('vit_tiny_patch16_224', img_size=32, timm_args=dict(embed_dim=8, depth=1, num_heads=1))
    network = SharedNetwork(vit, {name: copy.deepcopy(branch) for name in 'abc'})
    model = DenseModel(network, {name: SemanticTask() for name in 'abc'})
    graphs = []
    compile_network(model, CPU, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    imgs, valid = torch.randn(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, 16:] = False
    for mode in (True, False):
        model.train(mode)
        for padding in (None, valid):
            for names in (('a',), ('b',), ('c',), ('a', 'c')):
                before = len(graphs)
                assert tuple(network(imgs, padding, names=names)) == names
                assert len(graphs) > before, 'the network runs as it is'
