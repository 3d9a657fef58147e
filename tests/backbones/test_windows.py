"""Windowed attention: equal to global attention at one window, to single images when padded, and to plain loops."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vitdense.backbones.vit import Tokens, ViT
from vitdense.backbones.windows import ImageDropPath, WindowPartition
from vitdense.errors import ConfigError
from vitdense.registry import build
from vitdense.types import LayerRequest

SLIM = dict(depth=4, embed_dim=48, num_heads=3)
FAMILIES = {
    'vit_tiny_patch16_224': SLIM,
    'vit_small_patch14_reg4_dinov2': SLIM,
    'vit_small_patch16_dinov3': SLIM,  # RoPE in coordinates of the image's own grid
    'vit_base_patch16_siglip_224': SLIM,  # no prefix: a window of padding has nothing to look at
    'vit_small_patch16_rope_mixed_224': SLIM,
    'eva02_tiny_patch14_224': SLIM,
}
EVERY = [LayerRequest(index, False) for index in range(3)] + [LayerRequest(3, True)]
MODES = {
    'size': WindowPartition(size=3, global_blocks=(2,)),
    'oblong': WindowPartition(size=(2, 4), global_blocks=1),
    'split': WindowPartition(split=2, global_blocks=(-2,)),
    'split-oblong': WindowPartition(split=(3, 2), global_blocks=()),
    'each': WindowPartition(split=2, global_blocks=(0, 2), prefix='each'),
    'each-size': WindowPartition(size=(3, 2), global_blocks=(1, 3), prefix='each'),
}
ONE_WINDOW = [
    WindowPartition(size=64, global_blocks=1),
    WindowPartition(split=1, global_blocks=0),
    WindowPartition(split=1, global_blocks=2, prefix='each'),
]
every_family = pytest.mark.parametrize('name', FAMILIES)
every_mode = pytest.mark.parametrize('windows', MODES.values(), ids=MODES)


def make(name: str, **arguments) -> ViT:
    """A random ViT with norms, biases and LayerScale that are not neutral; the same weights each time."""
    torch.manual_seed(1)
    vit = ViT(name, timm_args=FAMILIES[name], **arguments)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return vit.eval()


def padded(sizes: list[tuple[int, int]], patch: int) -> tuple[Tensor, Tensor]:
    """Images of `sizes` cells on one canvas; the padding holds noise."""
    canvas = [max(size[axis] for size in sizes) * patch for axis in (0, 1)]
    imgs, valid = torch.randn(len(sizes), 3, *canvas), torch.zeros(len(sizes), *canvas, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        valid[row, : height * patch, : width * patch] = True
    return imgs, valid


@every_family
@pytest.mark.parametrize('windows', ONE_WINDOW, ids=str)
def test_one_window_is_global_attention(name: str, windows: WindowPartition) -> None:
    windowed, plain = make(name, windows=windows), make(name)
    batches = [(torch.randn(2, 3, 5 * plain.patch_size, 3 * plain.patch_size), None)]
    batches.append(padded([(5, 3), (2, 6), (4, 4)], plain.patch_size))
    with torch.no_grad():
        for imgs, valid in batches:
            ours, theirs = (vit(imgs, valid, layers=EVERY) for vit in (windowed, plain))
            for one, other in zip(ours.layers + ours.cls, theirs.layers + theirs.cls, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@every_family
@every_mode
def test_a_padded_batch_has_the_outputs_of_the_single_images(name: str, windows: WindowPartition) -> None:
    vit = make(name, windows=windows)
    patch = vit.patch_size
    sizes = [(7, 4), (5, 9), (2, 2), (1, 6)]
    imgs, valid = padded(sizes, patch)
    with torch.no_grad():
        batch = vit(imgs, valid, layers=EVERY)
        for row, (h, w) in enumerate(sizes):
            single = vit(imgs[row : row + 1, :, : h * patch, : w * patch], layers=EVERY)
            for ours, alone in zip(batch.layers, single.layers, strict=True):
                torch.testing.assert_close(ours[row, :, :h, :w], alone[0], atol=1e-4, rtol=1e-4)
                assert not ours[row, :, h:].any() and not ours[row, :, :, w:].any()
            for ours, alone in zip(batch.cls, single.cls, strict=True):
                torch.testing.assert_close(ours[row], alone[0], atol=1e-4, rtol=1e-4)


def attend(block: nn.Module, x: Tensor, rope: Tensor | None, prefix: int) -> Tensor:
    """A pre-norm block on one window of tokens (L, C), written out: Dosovitskiy et al. 2010.11929, equations 2 - 3."""
    attn, eps = block.attn, block.norm1.eps
    y = functional.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, eps)
    bias = 0.0 if attn.qkv.bias is None else attn.qkv.bias
    q, k, v = (y @ attn.qkv.weight.T + bias).unflatten(-1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)
    if rope is not None:
        sin, cos = rope.chunk(2, dim=-1)
        q, k = (torch.cat([part[:, :prefix], rotate(part[:, prefix:], sin, cos)], dim=1) for part in (q, k))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    y = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v  # (heads, L, d)
    y = y.transpose(0, 1).flatten(1) @ attn.proj.weight.T + attn.proj.bias
    scales = [getattr(block, key, None) for key in ('gamma_1', 'gamma_2')]
    if scales[0] is None:
        scales = [getattr(getattr(block, key), 'gamma', 1.0) for key in ('ls1', 'ls2')]
    x = x + scales[0] * y
    y = functional.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, eps)
    y = y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    return x + scales[1] * (y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """DINOv3's rotation: the first half of the channels with the second."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def in_loops(vit: ViT, tokens: Tokens, windows: list[tuple[slice, slice]]) -> list[Tensor]:
    """Run all blocks with loops over images and windows; the patches (B, h, w, C) behind each block."""
    prefix, (height, width) = vit.num_prefix_tokens, tokens.grid
    lead = [[row[:prefix].clone() for _ in windows] for row in tokens.x]
    maps = tokens.x[:, prefix:].unflatten(1, tokens.grid).clone()
    whole = tokens.rope
    rope = None if whole is None else whole.unflatten(0, tokens.grid)
    outputs = []
    for block, windowed in zip(vit.model.blocks, (True, True, False, True), strict=True):
        for row in range(len(maps)):
            if not windowed and vit.windows.prefix == 'each':
                done = attend(block, torch.cat([*lead[row], maps[row].flatten(0, 1)]), whole, prefix * len(windows))
                maps[row] = done[-height * width :].unflatten(0, tokens.grid)
                lead[row] = list(done[: -height * width].split(prefix))
                continue
            if not windowed:
                lead[row] = [sum(lead[row]) / len(windows)] * len(windows)
            for number, (rows, columns) in enumerate(windows if windowed else [(slice(height), slice(width))]):
                part = maps[row, rows, columns]
                table = None if rope is None else rope[: part.shape[0], : part.shape[1]].flatten(0, 1)
                done = attend(block, torch.cat([lead[row][number], part.flatten(0, 1)]), table, prefix)
                maps[row, rows, columns] = done[prefix:].unflatten(0, part.shape[:2])
                lead[row][number] = done[:prefix]
            if not windowed:
                lead[row] = [lead[row][0]] * len(windows)
        means = torch.stack([sum(parts) / len(windows) for parts in lead])
        outputs.append((maps.permute(0, 3, 1, 2).clone(), means[:, 0]))
    return outputs


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3'])
@pytest.mark.parametrize(
    ('windows', 'cells', 'grid'),
    [
        (WindowPartition(size=(3, 2), global_blocks=(2,)), (3, 2), (7, 4)),  # the last row of windows is cut short
        (WindowPartition(split=3, global_blocks=(2,)), (2, 3), (6, 8)),
        (WindowPartition(split=3, global_blocks=(2,), prefix='each'), (2, 3), (6, 8)),
    ],
    ids=['size', 'split', 'each'],
)
def test_equals_loops_over_windows_in_float64(
    name: str, windows: WindowPartition, cells: tuple[int, int], grid
) -> None:
    vit = make(name, windows=windows).double()
    imgs = torch.randn(2, 3, grid[0] * vit.patch_size, grid[1] * vit.patch_size, dtype=torch.float64)
    slices = [
        (slice(top, top + cells[0]), slice(left, left + cells[1]))
        for top in range(0, grid[0], cells[0])
        for left in range(0, grid[1], cells[1])
    ]
    with torch.no_grad():
        features = vit(imgs, layers=[(index, False) for index in range(4)])
        for index, (maps, cls) in enumerate(in_loops(vit, vit.embed(imgs), slices)):
            torch.testing.assert_close(features.layers[index], maps, atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(features.cls[index], cls, atol=1e-10, rtol=1e-10)


def test_what_is_read_in_between_changes_nothing_behind_it() -> None:
    vit = make('vit_small_patch14_reg4_dinov2', windows=WindowPartition(size=2, global_blocks=(3,)))
    imgs = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        whole, last = vit(imgs, layers=EVERY), vit(imgs, layers=EVERY[-1:])
    assert torch.equal(whole.layers[-1], last.layers[0]) and torch.equal(whole.cls[-1], last.cls[0])


def test_windows_are_cut_once_before_a_run_of_blocks_and_joined_once_after_it(monkeypatch) -> None:
    from vitdense.backbones.windows import Layout

    calls = []
    for verb in ('cut', 'join'):
        work = getattr(Layout, verb)
        monkeypatch.setattr(Layout, verb, lambda *args, verb=verb, work=work: (calls.append(verb), work(*args))[1])
    make('vit_tiny_patch16_224', windows=WindowPartition(size=2, global_blocks=(2,)))(
        torch.randn(1, 3, 64, 64), layers=[(3, 0)]
    )
    assert calls == ['cut', 'join', 'cut', 'join']


class LargestTensor(TorchDispatchMode):
    """Remember the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.size = max(self.size, value.numel())
        return result


def test_no_attention_matrix_is_made() -> None:
    """Of 1024 tokens in 3 heads it would have 3 M numbers; the hidden layer of the MLP has 0.2 M."""
    vit = make('vit_tiny_patch16_224', windows=WindowPartition(size=6, global_blocks=(3,)))
    imgs, valid = padded([(32, 32), (30, 20)], 16)
    with torch.no_grad(), LargestTensor() as largest:
        vit(imgs, valid, layers=EVERY)
    padding_of_windows = (36 / 32) ** 2 * 1.1
    assert largest.size <= 2 * 1025 * 4 * 48 * padding_of_windows


def test_stochastic_depth_is_drawn_per_image_and_repeated_over_its_windows() -> None:
    drop = ImageDropPath(0.5).train()
    drop.windows = 3
    kept = drop(torch.ones(4 * 3, 2, 5)).unflatten(0, (4, 3))
    assert torch.equal(kept, kept[:, :1, :1, :1].expand_as(kept))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(drop.eval()(torch.ones(12, 2)), torch.ones(12, 2))


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def test_one_window_draws_as_global_attention_does(name: str) -> None:
    imgs = torch.randn(4, 3, 64, 64)
    outputs = []
    for windows in (None, WindowPartition(split=1, global_blocks=0)):
        vit = make(name, windows=windows, drop_path=0.5).train()
        torch.manual_seed(3)
        outputs.append(vit(imgs, layers=EVERY).layers[-1])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def test_recomputed_blocks_give_the_same_gradient(name: str) -> None:
    batches = [padded([(4, 5), (3, 3), (2, 5)], 16), padded([(2, 3), (4, 4), (3, 1)], 16)]
    gradients, kept = [], []
    for checkpointing in (False, True):
        vit = make(name, windows=MODES['split'], checkpointing=checkpointing, drop_path=0.5).train()
        torch.manual_seed(2)
        held = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):  # both passes before the gradient
            loss = sum(vit(*batch, layers=[(-1, True)]).layers[0].square().mean() for batch in batches)
        loss.backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
        kept.append(held)
    assert kept[1] < 0.6 * kept[0]
    for ours, plain in zip(*gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(ours, plain)


class Exported(nn.Module):
    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, imgs: Tensor) -> tuple[Tensor, ...]:
        return self.vit(imgs, layers=[LayerRequest(0, False), LayerRequest(-1, True)]).layers


@pytest.mark.parametrize(
    ('name', 'windows'),
    [
        ('vit_small_patch14_reg4_dinov2', WindowPartition(size=3, global_blocks=(1,))),
        pytest.param('vit_tiny_patch16_224', WindowPartition(split=2, global_blocks=(1,)), marks=pytest.mark.slow),
    ],
)
def test_exports_with_free_batch_and_image_size(name: str, windows: WindowPartition) -> None:
    """For all images that are larger than a window."""
    model = Exported(ViT(name, windows=windows, frozen=True, timm_args=SLIM | {'depth': 2}))
    patch = model.vit.patch_size
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ('batch', 'height', 'width'))
    shapes = ({0: batch, 2: patch * height, 3: patch * width},)
    program = torch.export.export(model, (torch.randn(2, 3, 5 * patch, 6 * patch),), dynamic_shapes=shapes).module()
    for size, grid in ((3, (4, 5)), (1, (7, 6)), (2, (9, 11))):
        imgs = torch.randn(size, 3, grid[0] * patch, grid[1] * patch)
        torch.testing.assert_close(program(imgs), model(imgs), atol=1e-5, rtol=1e-5)


def test_an_export_for_one_size_has_no_masks_where_windows_fit() -> None:
    model = Exported(make('vit_tiny_patch16_224', windows=WindowPartition(split=2, global_blocks=(-1,)), frozen=True))
    imgs = torch.randn(1, 3, 64, 96)
    program = torch.export.export(model, (imgs,))
    torch.testing.assert_close(program.module()(imgs), model(imgs), atol=1e-5, rtol=1e-5)
    names = [str(node.target) for node in program.graph.nodes]
    assert not [name for name in names if 'mask' in name or 'logical' in name or 'bitwise' in name]


def test_attention_masks_belong_to_global_blocks() -> None:
    vit = make('vit_tiny_patch16_224', windows=WindowPartition(size=2, global_blocks=(2, 3)))
    tokens = vit.embed(torch.randn(1, 3, 64, 64))
    mask = torch.ones(1, 1, 17, 17, dtype=torch.bool)
    with pytest.raises(ConfigError, match='blocks 1 to 3 have a mask'):
        vit.run(tokens, 1, attn_mask=mask)
    assert torch.equal(vit.run(tokens, 2, attn_mask=mask).x, vit.run(tokens, 2).x)


def test_a_part_of_the_patches_has_no_windows() -> None:
    vit = make('vit_tiny_patch16_224', windows=WindowPartition(size=2, global_blocks=(3,)))
    with pytest.raises(ConfigError, match='part of the patches'):
        vit.keep(vit.embed(torch.randn(1, 3, 64, 64)), torch.tensor([[0, 3]]))


def test_inserted_queries_stand_in_every_window() -> None:
    """A query attends to all windows, and is averaged over them; one that is masked does not change the patches."""
    vit = make('vit_small_patch16_dinov3', windows=WindowPartition(split=2, global_blocks=(3,)))
    tokens, queries = vit.embed(torch.randn(2, 3, 64, 64)), torch.randn(2, 3, 48)
    with torch.no_grad():
        run = vit.run(vit.insert(tokens, queries))
        swapped = vit.run(vit.insert(tokens, queries.flip(1)))
    first = vit.num_prefix_tokens
    assert run.x.shape == (2, first + 3 + 16, 48) and run.layout is None
    torch.testing.assert_close(swapped.x[:, first : first + 3].flip(1), run.x[:, first : first + 3])


def test_which_blocks_are_global() -> None:
    def chosen(depth: int, choice) -> list[int]:
        return sorted(frozenset(range(depth)) - WindowPartition(size=8, global_blocks=choice).blocks(depth))

    assert chosen(12, 4) == [2, 5, 8, 11]  # as ViTDet has them
    assert chosen(24, 4) == [5, 11, 17, 23]
    assert chosen(12, 2) == [5, 11]
    assert chosen(12, (0, -1)) == [0, 11]
    assert chosen(12, 0) == []
    for wrong in (13, (12,), (-13,)):
        with pytest.raises(ConfigError, match='ViT with 12'):
            chosen(12, wrong)


@pytest.mark.parametrize(
    'options', [{}, dict(size=4, split=2), dict(size=0), dict(split=(2, 0)), dict(size=4, prefix='all')]
)
def test_windows_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigError):
        build(dict(type=WindowPartition, **options))


def test_a_recipe_makes_the_windows_of_a_vit() -> None:
    recipe = dict(type='vitdense.backbones.windows.WindowPartition', split=4, global_blocks=(-1,))
    vit = ViT('vit_tiny_patch16_224', windows=recipe, timm_args=SLIM)
    assert vit.windows == WindowPartition(split=4, global_blocks=(-1,))
