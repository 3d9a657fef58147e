"""Deformable attention: every way of computing it against sums written out in float64."""

import itertools
import math

import pytest
import torch

from vitdense.ops.deform_attn import cpu as deform_attn_cpu
from vitdense.ops.deform_attn.function import attend, deform_attn, route_of

GPU = pytest.mark.gpu
WAYS = [  # path, device
    ('grid_sample', 'cpu'),
    ('embedding_bag', 'cpu'),
    pytest.param(('grid_sample', 'cuda'), marks=GPU),
    pytest.param(('embedding_bag', 'cuda'), marks=GPU),
    pytest.param(('triton', 'cuda'), marks=GPU),
]
SHAPES = {  # batch, queries, heads, points, channels, grids
    'one pyramid': (2, 7, 2, 4, 8, [(6, 5), (3, 3)]),
    'thin levels': (1, 5, 3, 2, 5, [(1, 4), (3, 1), (1, 1), (2, 2)]),
    'one of each': (1, 1, 1, 1, 1, [(1, 1)]),
    'many levels': (3, 2, 1, 3, 6, [(2, 3), (4, 1), (1, 2), (5, 5), (1, 1)]),
    'more queries than a chunk': (2, 700, 2, 1, 3, [(4, 6)]),
    'no queries': (2, 0, 2, 4, 8, [(6, 5), (3, 3)]),
    'no images': (0, 3, 2, 4, 8, [(6, 5), (3, 3)]),
}


def random_arguments(batch, queries, heads, points, channels, grids, dtype=torch.float64):
    """Places reach over every edge; no place lies where the slope changes."""
    cells = sum(height * width for height, width in grids)
    value = torch.randn(batch, cells, heads, channels, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(grids), points, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(batch, queries, heads, len(grids), points, dtype=dtype)
    return value, locations, weights


def by_hand(value, grids, locations, weights):
    """The definition: every cell of every level has a share of max(0, 1 - dx) * max(0, 1 - dy) in every place."""
    sums, start = 0, 0
    for level, (height, width) in enumerate(grids):
        cells = value[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        x, y = (locations[..., level, :, :] * torch.tensor([width, height]) - 0.5).unbind(-1)  # (B, Q, heads, points)
        columns = (1 - (x[..., None] - torch.arange(width)).abs()).clamp(min=0)
        rows = (1 - (y[..., None] - torch.arange(height)).abs()).clamp(min=0)
        sums = sums + torch.einsum('bqnp,bqnpi,bqnpj,bijnc->bqnc', weights[..., level, :], rows, columns, cells)
    return sums.flatten(2)


def run(way, value, grids, locations, weights):
    """`deform_attn` on one path and device; tensors come from and go to the CPU."""
    path, device = way
    tensors = [tensor.to(device) for tensor in (value, locations, weights)]
    return deform_attn(tensors[0], grids, *tensors[1:], path=path).cpu()


def value_and_gradients(function, value, grids, locations, weights, grad_output):
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(leaves[0], grids, *leaves[1:])
    return [output.detach(), *torch.autograd.grad((output * grad_output).sum(), leaves)]


def assert_close(ours, exact, bound):
    for name, own, true in zip(('output', 'value', 'locations', 'weights'), ours, exact, strict=True):
        assert own.shape == true.shape
        error = (own - true).abs().max() / true.abs().max().clamp(min=1) if true.numel() else torch.zeros(())
        assert error <= bound, f'{name}: off by {error:.1e}'


@pytest.mark.parametrize('way', WAYS, ids=str)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(('dtype', 'bound'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_all_gradients_equal_the_definition(way, shape, dtype, bound):
    grids = shape[-1]
    arguments = random_arguments(*shape)
    grad_output = torch.randn(shape[0], shape[1], shape[2] * shape[4], dtype=torch.float64)
    exact = value_and_gradients(by_hand, arguments[0], grids, *arguments[1:], grad_output)
    value, locations, weights = (tensor.to(dtype) for tensor in arguments)
    ours = value_and_gradients(
        lambda *arguments: run(way, *arguments), value, grids, locations, weights, grad_output.to(dtype)
    )
    assert all(tensor.dtype == dtype for tensor in ours)
    assert_close(ours, exact, bound)


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_gradcheck(way):
    grids = [(3, 2), (1, 2), (1, 1)]
    leaves = [tensor.requires_grad_() for tensor in random_arguments(1, 2, 2, 2, 2, grids)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: run(way, value, grids, locations, weights), leaves
    )


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_a_cell_centre_reads_its_cell_and_outside_reads_zero(way):
    grids = [(2, 3), (1, 1)]
    value = torch.arange(1.0, 8.0).view(1, 7, 1, 1)
    centres = [((column + 0.5) / 3, (row + 0.5) / 2) for row, column in itertools.product(range(2), range(3))]
    far = [(-1.0, 0.5), (2.0, 0.5), (0.5, -9.0), (0.5, 1e30), (-1e30, -1e30), (math.inf, 0.5), (0.5, -math.inf)]
    locations = torch.tensor(centres + far).view(1, -1, 1, 1, 1, 2).repeat(1, 1, 1, 2, 1, 1)
    locations[..., 1, :, :] = 7.0  # nothing from the second level
    output = run(way, value, grids, locations, torch.ones(locations.shape[:-1]))
    assert output[0, :6, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert output[0, 6:].nan_to_num(0.0).abs().max() == 0  # infinite places have no meaning; they must not crash


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_slopes_at_cell_centres_are_those_to_the_right(way):
    """Where the slope jumps, every path takes the side that grid_sample takes."""
    value = torch.tensor([1.0, 4.0, 9.0]).view(1, 3, 1, 1)
    positions = torch.tensor([-0.5, 0.0, 1.0, 2.0, 3.0, -1.0])  # in cells
    locations = torch.full((1, 6, 1, 1, 1, 2), 0.5)
    locations[0, :, 0, 0, 0, 0] = (positions + 0.5) / 3
    locations.requires_grad_()
    run(way, value, [(1, 3)], locations, torch.ones(1, 6, 1, 1, 1)).sum().backward()
    torch.testing.assert_close(locations.grad[0, :, 0, 0, 0, 0] / 3, torch.tensor([1.0, 3.0, 5.0, -9.0, 0.0, 1.0]))


@pytest.mark.parametrize('way', WAYS, ids=str)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_values_are_read_at_exact_places(way, dtype):
    """Cell 399 of 400 is named by a float32; its neighbours hold other values."""
    value = (torch.arange(400) % 16).to(dtype).view(1, 400, 1, 1)
    locations = torch.tensor([399.5 / 400, 0.5]).view(1, 1, 1, 1, 1, 2)
    output = run(way, value, [(1, 400)], locations, torch.ones(1, 1, 1, 1, 1))
    assert output.dtype == dtype
    assert output.item() == pytest.approx(15, rel=1e-2)


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_inference_first_and_training_later(way):
    grids = [(5, 4), (2, 2)]
    arguments = random_arguments(1, 3, 2, 2, 4, grids, dtype=torch.float32)
    with torch.inference_mode():
        first = run(way, arguments[0], grids, *arguments[1:])
    leaves = [tensor.requires_grad_() for tensor in arguments]
    later = run(way, leaves[0], grids, *leaves[1:])
    later.sum().backward()
    assert torch.equal(first, later)
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_strided_arguments_and_partial_gradients(way):
    grids = [(3, 4)]
    value, locations, weights = random_arguments(2, 3, 2, 2, 4, grids)
    expected = by_hand(value, grids, locations, weights)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    output = run(way, strided, grids, locations.flip(1), weights.flip(1)).flip(1)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert strided.grad.shape == value.shape


def test_misfits_are_refused():
    value, locations, weights = random_arguments(2, 3, 2, 2, 4, [(3, 4)])
    with pytest.raises(ValueError, match='cells of the levels'):
        deform_attn(value, [(3, 5)], locations, weights)
    with pytest.raises(ValueError, match='1 levels'):
        deform_attn(value, [(3, 4)], locations.expand(-1, -1, -1, 2, -1, -1), weights)
    with pytest.raises(ValueError, match='do not fit locations'):
        deform_attn(value, [(3, 4)], locations, weights[..., :1])


def test_a_place_that_is_not_a_number_spoils_its_query_alone():
    """A diverged network must show in the output, and not crash."""
    grids = [(3, 4), (1, 1)]
    value, locations, weights = random_arguments(1, 3, 1, 2, 4, grids)
    locations[0, 1, 0, 0, 1, 0] = math.nan
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = deform_attn(leaves[0], grids, *leaves[1:], path='embedding_bag')
    assert output[0, 1].isnan().all() and output[0, [0, 2]].isfinite().all()
    output.sum().backward()
    assert leaves[2].grad.isnan().sum() == 1


def test_the_same_arguments_give_the_same_bits():
    """Gradients of cells that many queries read are added up in a fixed order."""
    grids = [(2, 2)]
    arguments = random_arguments(1, 500, 2, 4, 8, grids, dtype=torch.float32)
    grad_output = torch.randn(1, 500, 16)
    first, second = (
        value_and_gradients(deform_attn, arguments[0], grids, *arguments[1:], grad_output) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_way_is_chosen_by_device_and_tracing(monkeypatch):
    value = torch.zeros(1, 4, 1, 1)
    assert route_of(value) == 'embedding_bag'
    assert route_of(value.to('meta')) == 'grid_sample'
    monkeypatch.setattr(deform_attn_cpu, 'MAX_ROWS', 4)
    assert route_of(value) == 'grid_sample'  # float32 could not count the cells


def test_the_operators_pass_opcheck():
    """Schema, shapes without data and autograd registration, as `torch.compile` relies on them."""
    value, locations, weights = (
        tensor.float().requires_grad_() for tensor in random_arguments(1, 3, 2, 2, 4, [(3, 2)])
    )
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(attend, (value, [3, 2], locations, weights, 'embedding_bag'), test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_gradients_on_a_gpu(dtype):
    grids = [(6, 5), (3, 3)]
    value, locations, weights = random_arguments(2, 40, 2, 4, 8, grids)
    value = value.to(dtype).double()
    grad_output = torch.randn(2, 40, 16, dtype=torch.float64).to(dtype).double()
    exact = value_and_gradients(by_hand, value, grids, locations, weights, grad_output)
    ours = value_and_gradients(
        lambda *arguments: run(('triton', 'cuda'), *arguments),
        value.to(dtype), grids, locations.float(), weights.float(), grad_output.to(dtype),
    )  # fmt: skip
    assert [tensor.dtype for tensor in ours] == [dtype, dtype, torch.float32, torch.float32]
    assert_close(ours, exact, 0.02)


@pytest.mark.gpu
def test_the_way_on_a_gpu():
    value = torch.zeros(1, 4, 1, 1, device='cuda')
    assert route_of(value) == 'triton'
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert route_of(value) == 'embedding_bag'
    finally:
        torch.use_deterministic_algorithms(False)
