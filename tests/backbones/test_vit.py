"""The ViT: parity with timm, padded batches, the five steps of a pass, freezing, memory, export."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError, DataError
from vitdense.types import LayerRequest

SLIM = {'depth': 3}
NARROW = {'depth': 3, 'embed_dim': 192, 'num_heads': 3}
FAMILIES = {
    'vit_tiny_patch16_224': SLIM,  # AugReg: class token with a position of its own
    'vit_small_patch14_dinov2': SLIM,  # LayerScale, patch 14
    'vit_small_patch14_reg4_dinov2': SLIM,  # registers, prefix without positions
    'vit_small_patch16_dinov3': SLIM,  # RoPE in coordinates of the image's own grid, no table
    'deit3_small_patch16_224': SLIM,
    'deit_tiny_distilled_patch16_224': SLIM,  # two prefix tokens of their own
    'vit_base_patch16_siglip_224': NARROW,  # no prefix, pooled by attention
    'vit_base_patch16_clip_224': NARROW,  # norm before the blocks
    'eva02_tiny_patch14_224': SLIM,  # table and RoPE scaled to the grid, norm behind the pooling
    'vit_small_patch16_rope_mixed_224': SLIM,  # RoPE of its own for each block
    'vit_small_patch16_rope_mixed_ape_224': SLIM,
    'vit_pe_spatial_tiny_patch16_512': SLIM,  # no final norm at all
}


def make(name: str, **arguments) -> ViT:
    """A random ViT whose every part matters: norms, biases and LayerScale are not at their neutral values."""
    vit = ViT(name, timm_args=FAMILIES[name], **arguments)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return vit.eval()


@pytest.mark.parametrize('name', FAMILIES)
def test_maps_and_class_tokens_equal_timm(name: str) -> None:
    vit = make(name)
    requests = [LayerRequest(0, True), LayerRequest(-1, False), LayerRequest(1, False), LayerRequest(2, True)]
    for grid in ((4, 6), (5, 3), (4, 4)):
        imgs = torch.randn(2, 3, grid[0] * vit.patch_size, grid[1] * vit.patch_size)
        with torch.no_grad():
            features = vit(imgs, layers=requests)
            assert features.input_size == tuple(imgs.shape[-2:])
            for position, (index, normed) in enumerate(requests):
                output = vit.model.forward_intermediates(
                    imgs, [index % 3], return_prefix_tokens=True, norm=normed, intermediates_only=True
                )[0]
                expected, prefix = output if isinstance(output, tuple) else (output, None)
                assert features.layers[position].shape == (2, vit.embed_dim, *grid)
                torch.testing.assert_close(features.layers[position], expected, atol=1e-5, rtol=1e-5)
                if vit.has_cls:
                    torch.testing.assert_close(features.cls[position], prefix[:, 0], atol=1e-5, rtol=1e-5)
            assert vit.has_cls or features.cls == ()


def test_the_final_norm_is_a_real_one_also_where_timm_pools_first() -> None:
    for name in ('eva02_tiny_patch14_224', 'vit_base_patch16_siglip_224', 'deit3_small_patch16_224'):
        assert isinstance(make(name).model.norm, nn.LayerNorm)


def padded(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    canvas = max(height for height, _ in sizes), max(width for _, width in sizes)
    imgs, valid = torch.zeros(len(sizes), 3, *canvas), torch.zeros(len(sizes), *canvas, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        imgs[row, :, :height, :width] = torch.randn(3, height, width)
        valid[row, :height, :width] = True
    return imgs, valid


@pytest.mark.parametrize('name', FAMILIES)
def test_a_padded_batch_has_the_outputs_of_the_single_images(name: str) -> None:
    vit = make(name)
    patch = vit.patch_size
    sizes = [(5 * patch, 3 * patch), (4 * patch, 6 * patch), (2 * patch, 2 * patch + 3)]  # the last ends within a cell
    imgs, valid = padded(sizes)
    with torch.no_grad():
        batch = vit(imgs, valid, layers=[LayerRequest(1, False), LayerRequest(-1, True)])
        for row, (height, width) in enumerate(sizes):
            h, w = -(-height // patch), -(-width // patch)
            single = vit(
                imgs[row : row + 1, :, : h * patch, : w * patch],
                layers=[LayerRequest(1, False), LayerRequest(-1, True)],
            )
            for ours, alone in zip(batch.layers, single.layers, strict=True):
                torch.testing.assert_close(ours[row, :, :h, :w], alone[0], atol=1e-4, rtol=1e-4)
                assert not ours[row, :, h:].any() and not ours[row, :, :, w:].any()
            for ours, alone in zip(batch.cls, single.cls, strict=True):
                torch.testing.assert_close(ours[row], alone[0], atol=1e-4, rtol=1e-4)


def test_a_full_batch_is_not_masked() -> None:
    vit = make('vit_tiny_patch16_224')
    imgs = torch.randn(2, 3, 32, 48)
    almost = torch.ones(2, 32, 48, dtype=torch.bool)
    almost[1, :, 40:] = False  # half a cell: nothing to mask
    assert vit.embed(imgs, almost).mask is None


def test_gradients_reach_the_positions_of_a_padded_batch() -> None:
    vit = make('vit_small_patch16_rope_mixed_ape_224').train()
    vit(*padded([(48, 32), (32, 64)]), layers=[LayerRequest(-1)]).layers[0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in vit.parameters())
    assert vit.model.pos_embed.grad.any() and vit.model.rope.freqs.grad.any()


def test_the_pass_stops_after_the_last_requested_block() -> None:
    vit = make('vit_tiny_patch16_224')
    ran = []
    for index, block in enumerate(vit.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    vit(torch.randn(1, 3, 32, 32), layers=[(1, False), (0, True), (1, True), (1, False)])
    assert ran == [0, 1]


def test_layers_that_do_not_exist_are_an_error() -> None:
    vit = make('vit_tiny_patch16_224')
    for index in (3, -4):
        with pytest.raises(ConfigError, match='ViT with 3 blocks'):
            vit(torch.randn(1, 3, 32, 32), layers=[(index, True)])


def test_images_that_do_not_divide_into_patches_are_an_error() -> None:
    vit = make('vit_small_patch14_dinov2')
    with pytest.raises(DataError, match='30 x 28 pixels do not divide into patches of 14 x 14'):
        vit(torch.randn(1, 3, 30, 28), layers=[(-1, True)])
    with pytest.raises(ValueError, match='valid'):
        vit(torch.randn(2, 3, 28, 28), torch.ones(2, 14, 14, dtype=torch.bool), layers=[(-1, True)])


INSERTED = [
    'vit_tiny_patch16_224',
    'vit_small_patch16_dinov3',
    'eva02_tiny_patch14_224',
    'vit_small_patch16_rope_mixed_224',
]


@pytest.mark.parametrize('name', INSERTED)
def test_inserted_queries_do_not_move_the_patches(name: str) -> None:
    """Queries hidden from all others leave them as they were; the queries' own outputs do not depend on their order."""
    vit = make(name)
    tokens = vit.embed(*padded([(4 * vit.patch_size, 3 * vit.patch_size), (2 * vit.patch_size, 5 * vit.patch_size)]))
    queries = torch.randn(2, 4, vit.embed_dim)
    count = tokens.x.shape[1] + 4
    first = vit.num_prefix_tokens
    see = torch.ones(1, 1, count, count, dtype=torch.bool)
    see[..., first : first + 4] = torch.eye(count, dtype=torch.bool)[:, first : first + 4]
    with torch.no_grad():
        plain = vit.run(tokens)
        bias = torch.zeros(see.shape).masked_fill(~see, float('-inf'))
        outputs = [vit.run(vit.insert(tokens, queries), attn_mask=mask) for mask in (see, bias)]
        swapped = vit.run(vit.insert(tokens, queries.flip(1)), attn_mask=see)
    for run in outputs:
        torch.testing.assert_close(vit.fold(run), vit.fold(plain), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        swapped.x[:, first : first + 4].flip(1), outputs[0].x[:, first : first + 4], atol=1e-4, rtol=1e-4
    )
    assert not torch.equal(outputs[0].x[:, first], queries[:, 0])


def test_fold_is_a_view() -> None:
    vit = make('vit_small_patch14_reg4_dinov2')
    tokens = vit.embed(torch.randn(2, 3, 28, 42))
    assert vit.fold(tokens).data_ptr() == tokens.x[:, 5:].data_ptr()
    assert torch.equal(vit.fold(tokens)[1, :, 1, 2], tokens.x[1, 5 + 1 * 3 + 2])


def test_a_frozen_vit_stays_frozen() -> None:
    vit = ViT('vit_tiny_patch16_224', frozen=True, drop_path=0.5, timm_args=SLIM).train()
    imgs = torch.randn(1, 3, 32, 32, requires_grad=True)
    first, second = (vit(imgs, layers=[(-1, True)]).layers[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(module.training for module in vit.modules())
    assert not any(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize(
    'name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'vit_small_patch16_rope_mixed_224']
)
def test_remembered_positions_are_those_of_the_weights(name: str) -> None:
    """Neither inference mode, nor another grid, nor new weights leave a wrong table behind."""
    frozen = ViT(name, frozen=True, timm_args=SLIM)
    free = ViT(name, timm_args=SLIM).eval()
    imgs, wide = torch.randn(1, 3, 32, 48), torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        frozen(imgs, layers=[(-1, True)])
        free(imgs, layers=[(-1, True)])
    frozen.load_state_dict(free.state_dict())
    for images in (imgs, wide, imgs):
        output = free(images, layers=[(-1, True)]).layers[0]
        torch.testing.assert_close(frozen(images, layers=[(-1, True)]).layers[0], output, atol=1e-6, rtol=1e-6)
        output.sum().backward()  # nothing made under inference mode came back
    assert torch.equal(
        copy.deepcopy(frozen)(imgs, layers=[(-1, True)]).layers[0], frozen(imgs, layers=[(-1, True)]).layers[0]
    )


def test_averaged_weights_swapped_in_behind_autograd_are_seen() -> None:
    """mmengine's EMA writes through `.data`, which no version counter notices."""
    vit = make('vit_tiny_patch16_224')
    imgs = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        before = vit(imgs, layers=[(0, False)]).layers[0]
        vit.model.pos_embed.data.add_(torch.randn_like(vit.model.pos_embed))
        assert not torch.allclose(before, vit(imgs, layers=[(0, False)]).layers[0])


def test_bf16_of_the_frozen_part_ends_in_float32() -> None:
    vit = ViT('vit_tiny_patch16_224', frozen=True, amp='bf16', timm_args=SLIM)
    exact = ViT('vit_tiny_patch16_224', frozen=True, timm_args=SLIM)
    exact.load_state_dict(vit.state_dict())
    imgs = torch.randn(1, 3, 32, 32)
    outputs = [model(imgs, layers=[(-1, False)]) for model in (vit, exact)]
    assert outputs[0].layers[0].dtype == outputs[0].cls[0].dtype == torch.float32
    assert not torch.equal(outputs[0].layers[0], outputs[1].layers[0])
    torch.testing.assert_close(outputs[0].layers[0], outputs[1].layers[0], atol=0.05, rtol=0.05)
    with pytest.raises(ConfigError, match='amp'):
        ViT('vit_tiny_patch16_224', amp='bf16', timm_args=SLIM)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def test_checkpointing_saves_activations_and_changes_no_gradient(name: str) -> None:
    imgs, valid = padded([(32, 48), (48, 32)])
    gradients, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        vit = ViT(name, checkpointing=checkpointing, drop_path=0.5, timm_args=SLIM).train()
        torch.manual_seed(2)
        held = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = vit(imgs, valid, layers=[(-1, True)]).layers[0].square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
        kept.append(held)
    assert kept[1] < 0.5 * kept[0]
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_drop_path_grows_with_depth() -> None:
    vit = ViT('vit_tiny_patch16_224', drop_path=0.2, timm_args=SLIM)
    rates = [getattr(block.drop_path1, 'drop_prob', 0.0) for block in vit.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_facts() -> None:
    vit = make('vit_small_patch14_reg4_dinov2')
    assert (vit.embed_dim, vit.depth, vit.patch_size, vit.divisor, vit.num_prefix_tokens) == (384, 3, 14, 14, 5)
    assert vit.has_cls
    assert vit.mean == (0.485, 0.456, 0.406)
    assert make('vit_tiny_patch16_224').std == (0.5, 0.5, 0.5)
    assert make('vit_base_patch16_siglip_224').num_prefix_tokens == 0


def test_the_tag_decides_the_normalisation() -> None:
    default, dino = (ViT(name, timm_args=SLIM) for name in ('vit_small_patch16_224', 'vit_small_patch16_224.dino'))
    assert default.mean == (0.5, 0.5, 0.5)
    assert dino.mean == (0.485, 0.456, 0.406)


def test_layer_of_counts_from_the_embedding_to_the_norm() -> None:
    for name in FAMILIES:
        vit = make(name)
        layers = {parameter: vit.layer_of(parameter) for parameter, _ in vit.named_parameters()}
        assert set(layers.values()) == set(range(5 if isinstance(vit.model.norm, nn.LayerNorm) else 4))
        assert layers['model.patch_embed.proj.weight'] == 0
        assert all(
            layers[key] == 0 for key in ('model.pos_embed', 'model.cls_token', 'model.reg_token') if key in layers
        )
        assert (
            layers[
                'model.blocks.2.mlp.fc1.weight' if name != 'eva02_tiny_patch14_224' else 'model.blocks.2.norm1.weight'
            ]
            == 3
        )
    assert make('vit_tiny_patch16_224').layer_of('blocks.0.norm1.weight') == 1


class Exported(nn.Module):
    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, imgs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vit(imgs, layers=[LayerRequest(0, False), LayerRequest(-1, True)])
        return features.layers[0], features.layers[1]


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def test_exports_and_leaves_no_trace(name: str) -> None:
    vit = ViT(name, frozen=True, timm_args=SLIM)
    imgs = torch.randn(2, 3, 48, 32)
    program = torch.export.export(Exported(vit).eval(), (imgs,)).module()
    torch.testing.assert_close(program(imgs), Exported(vit)(imgs), atol=1e-5, rtol=1e-5)


def test_exports_with_free_batch_and_image_size() -> None:
    vit = make('vit_small_patch14_reg4_dinov2')
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ('batch', 'height', 'width'))
    shapes = ({0: batch, 2: 14 * height, 3: 14 * width},)
    with torch.no_grad():
        program = torch.export.export(Exported(vit), (torch.randn(2, 3, 70, 84),), dynamic_shapes=shapes).module()
        imgs = torch.randn(3, 3, 42, 56)
        torch.testing.assert_close(program(imgs), Exported(vit)(imgs), atol=1e-5, rtol=1e-5)


def test_wrong_arguments_are_errors_with_a_cure() -> None:
    for arguments, message in (
        ({'name': 'vit_tinny_patch16_224'}, "did you mean 'vit_tiny_patch16_224'"),
        ({'name': 'resnet50'}, 'not a plain Vision Transformer'),
        ({'name': 'vit_tiny_patch16_224.nonsense'}, 'nonsense'),
        ({'name': 'vit_tiny_patch16_224', 'timm_args': {'dept': 3}}, 'dept'),
        ({'name': 'vit_tiny_patch16_224', 'timm_args': {'drop_path_rate': 0.1}}, 'drop_path='),
        ({'name': 'vit_tiny_patch16_224', 'img_size': 100}, '96 x 96'),
        ({'name': 'vit_tiny_patch16_224', 'img_size': (64, 100), 'patch_size': 8}, '64 x 96'),
    ):
        with pytest.raises(ConfigError, match=message):
            ViT(**arguments)


def test_a_vit_from_scratch_has_the_wanted_patch_and_table() -> None:
    vit = ViT('vit_tiny_patch16_224', patch_size=8, img_size=(64, 96), timm_args=SLIM)
    assert vit.patch_size == 8
    assert vit.model.pos_embed.shape == (1, 1 + 8 * 12, 192)
    assert vit(torch.randn(1, 3, 64, 64), layers=[(-1, True)]).layers[0].shape == (1, 192, 8, 8)
