"""The Triton kernels of deformable attention where there is no GPU: Triton's interpreter runs them on the CPU."""

import os
import subprocess
import sys

import pytest
import torch

from vitdense.ops.deform_attn.function import deform_attn

SHAPES = [  # batch, queries, heads, points, channels, grids
    (2, 70, 1, 2, 8, [(6, 5), (1, 3)]),  # more than one block of queries
    (1, 5, 2, 1, 5, [(1, 1)]),
]


def compare() -> None:
    """Compare value and gradients of the kernels with `grid_sample`; float64 but for rounding to halves at the end."""
    from vitdense.ops.deform_attn import cuda as deform_attn_cuda

    deform_attn_cuda.MANY_PROGRAMS = 1  # the interpreter runs one program after the other
    for batch, queries, heads, points, channels, grids in SHAPES:
        cells = sum(height * width for height, width in grids)
        value = torch.randn(batch, cells, heads, channels, dtype=torch.float64)
        locations = torch.rand(batch, queries, heads, len(grids), points, 2, dtype=torch.float64) * 1.6 - 0.3
        weights = torch.randn(locations.shape[:-1], dtype=torch.float64)
        leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        exact = deform_attn(leaves[0], grids, *leaves[1:], path='grid_sample')
        grad_output = torch.randn_like(exact)
        arguments = value, grids, locations, weights
        torch.testing.assert_close(deform_attn_cuda.attend(*arguments), exact.detach())
        ours = deform_attn_cuda.attend_backward(grad_output, *arguments)
        torch.testing.assert_close(list(ours), list(torch.autograd.grad(exact, leaves, grad_output)))
        half = deform_attn_cuda.attend(value.bfloat16(), grids, locations.float(), weights.float())
        torch.testing.assert_close(half.double(), exact.detach(), rtol=0.03, atol=0.03)


def test_kernels_equal_grid_sample_in_the_interpreter():
    pytest.importorskip('triton')
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}  # read when the kernels are defined, so in a new process
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize('value_type', ['fp32', 'bf16'])
@pytest.mark.parametrize('name', ['_attend', '_attend_backward'])
def test_kernels_compile_for_a_gpu_that_is_not_there(name, value_type):
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget

    from vitdense.ops.deform_attn import cuda as deform_attn_cuda

    kernel = getattr(deform_attn_cuda, name)
    constants = dict(HEADS=8, LEVELS=4, POINTS=4, CHANNELS=32, BLOCK_QUERIES=16, BLOCK_CHANNELS=32)
    types = {'value': value_type, 'grad_output': value_type, 'output': value_type, 'levels': 'i32'}
    signature = {
        argument: 'constexpr' if argument in constants else 'i32' if argument.startswith('num_')
        else '*' + types.get(argument, 'fp32')
        for argument in kernel.arg_names
    }  # fmt: skip
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget('cuda', 80, 32)).asm['cubin']


if __name__ == '__main__':
    torch.manual_seed(0)
    compare()
