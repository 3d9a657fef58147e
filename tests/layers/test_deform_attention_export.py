"""The deformable attention layer compiled and exported: the same numbers, at other sizes too."""

import numpy
import pytest
import torch
from torch import nn

from vitdense.layers.deform_attention import DeformableAttention


class Reader(nn.Module):
    """Queries that read two maps."""

    def __init__(self):
        super().__init__()
        self.attention = DeformableAttention(16, num_heads=2, num_levels=2, num_points=3)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, queries, references, fine, coarse):
        maps = (fine, coarse)
        values = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        valid = values.sum(-1) > -3
        return self.attention(queries, references, values, [tuple(level.shape[-2:]) for level in maps], valid)


def inputs(batch=2, queries=7, height=8, width=10, coordinates=2):
    maps = (torch.randn(batch, 16, height // scale, width // scale) for scale in (1, 2))
    return torch.randn(batch, queries, 16), torch.rand(batch, queries, 2, coordinates), *maps


def free_sizes():
    free = torch.export.Dim.AUTO
    return {0: free, 1: free}, {0: free, 1: free}, {0: free, 2: free, 3: free}, {0: free, 2: free, 3: free}


OTHER = dict(batch=3, queries=9, height=12, width=6)


@pytest.mark.parametrize('coordinates', [2, 4])
def test_exported_once_for_all_sizes(coordinates):
    model = Reader().eval()
    exported = torch.export.export(model, inputs(coordinates=coordinates), dynamic_shapes=free_sizes())
    names = {str(node.target) for node in exported.graph.nodes if node.op == 'call_function'}
    assert 'aten.grid_sampler.default' in names and not [name for name in names if 'vitdense' in name]
    for sizes in ({}, OTHER):
        arguments = inputs(**sizes, coordinates=coordinates)
        torch.testing.assert_close(exported.module()(*arguments), model(*arguments), rtol=1e-4, atol=1e-5)


def test_onnx_has_the_outputs_of_the_layer(tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    model, file = Reader().eval(), tmp_path / 'reader.onnx'
    torch.onnx.export(model, inputs(), file, dynamo=True, dynamic_shapes=free_sizes(), opset_version=20, verbose=False)
    session = runtime.InferenceSession(file)
    for sizes in ({}, OTHER):
        arguments = inputs(**sizes)
        named = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), arguments, strict=True)}
        expected = model(*arguments).detach().numpy()
        numpy.testing.assert_allclose(session.run(None, named)[0], expected, rtol=1e-4, atol=1e-5)


def test_compiled_in_one_graph_with_the_fast_operator():
    graphs = []

    def look(graph, example_inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op == 'call_function'})
        return graph

    torch._dynamo.reset()
    model = Reader()
    compiled = torch.compile(model, backend=look, fullgraph=True)
    arguments = inputs()
    compiled(*arguments).sum().backward()
    ours = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model(*arguments).sum().backward()
    torch.testing.assert_close(ours, [weight.grad for weight in model.parameters()])
    assert len(graphs) == 1 and any('vitdense.deform_attn' in name for name in graphs[0])
