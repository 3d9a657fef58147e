"""MaskedAutoencoder: the encoder reads the visible patches alone, and loss and tokens are those of transformers."""

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.heads.from_transformers import gradient_error, gradients_of
from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError, DataError
from vitdense.networks.mae import MaskedAutoencoder, patchify, sincos_table
from vitdense.tasks.reconstruction import ReconstructionTask
from vitdense.types import Meta

SIZE = (48, 64)  # 3 x 4 patches
DECODER = dict(decoder_channels=32, decoder_depth=2, decoder_heads=4)


def encoder(size: tuple[int, int] = SIZE) -> ViT:
    return ViT('vit_tiny_patch16_224', img_size=size, timm_args=dict(embed_dim=48, depth=2, num_heads=3))


def autoencoder(size: tuple[int, int] = SIZE, **arguments) -> MaskedAutoencoder:
    return MaskedAutoencoder(encoder(size), **{**DECODER, **arguments})


def weights_for_transformers(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of our state dict into those of ViTMAEForPreTraining."""
    theirs = {}
    for name, value in ours.items():
        for old, new in (
            ('backbone.model.cls_token', 'vit.embeddings.cls_token'),
            ('backbone.model.pos_embed', 'vit.embeddings.position_embeddings'),
            ('backbone.model.patch_embed.proj', 'vit.embeddings.patch_embeddings.projection'),
            ('backbone.model.blocks', 'vit.layers'),
            ('backbone.model.norm', 'vit.layernorm'),
            ('decoder_blocks', 'decoder.decoder_layers'),
            ('decoder_', 'decoder.decoder_'),
            ('mask_token', 'decoder.mask_token'),
        ):
            if name.startswith(old):
                name = name.replace(old, new, 1)
                break
        name = name.replace('.norm1.', '.layernorm_before.').replace('.norm2.', '.layernorm_after.')
        name = name.replace('.attn.proj.', '.attention.o_proj.')
        if '.attn.qkv.' in name:
            for part, rows in zip('qkv', value.chunk(3), strict=True):
                theirs[name.replace('.attn.qkv.', f'.attention.{part}_proj.')] = rows
        else:
            theirs[name] = value
    return theirs


@pytest.mark.parametrize('norm_pix', [True, False])
def test_loss_tokens_and_patches_equal_those_of_transformers(norm_pix):
    network = autoencoder((64, 64), norm_pix=norm_pix).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # every bias and every norm plays a part
    config = ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=64,
        patch_size=16,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
        norm_pix_loss=norm_pix,
        layer_norm_eps=1e-6,
    )
    reference = ViTMAEForPreTraining(config).eval()
    weights = weights_for_transformers(network.state_dict())
    positions = torch.nn.functional.pad(network.decoder_positions, (0, 0, 1, 0))[None]
    reference.load_state_dict({**weights, 'decoder.decoder_pos_embed': positions})

    imgs, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    with torch.no_grad():
        theirs = reference(imgs, noise=noise)
        tokens = reference.vit(imgs, noise=noise).last_hidden_state
        ours = network(imgs, training_inputs={'mae': noise})['mae']
        recorded = noise.argsort(1)[:, : network.num_visible(16)]
        torch.testing.assert_close(network.encode(imgs, recorded), tokens, atol=1e-4, rtol=1e-4)
    assert ours.mask.tolist() == theirs.mask.bool().tolist() and ours.mask.sum(1).tolist() == [12, 12]
    torch.testing.assert_close(ours.patches, theirs.logits, atol=1e-4, rtol=1e-4)
    (loss,) = ReconstructionTask().loss(ours, []).values()
    torch.testing.assert_close(loss, theirs.loss, atol=1e-4, rtol=1e-4)

    reference(imgs, noise=noise).loss.backward()
    sum(ReconstructionTask().loss(network(imgs, training_inputs={'mae': noise})['mae'], []).values()).backward()
    expected = gradients_of(reference)
    del expected['decoder.decoder_pos_embed']  # fixed; ours are no parameter
    assert gradient_error(weights_for_transformers(gradients_of(network)), expected) < 1e-4


def test_the_encoder_reads_visible_patches_only():
    network = autoencoder().eval()
    lengths = []
    for block in network.backbone.model.blocks:
        block.register_forward_hook(lambda block, options, output: lengths.append(options[0].shape[1]))
    imgs, noise = torch.randn(1, 3, *SIZE), torch.rand(1, 12)
    recorded = noise.argsort(1)[:, :3]
    masked = network(imgs, training_inputs={'mae': noise})['mae'].mask
    assert lengths == [1 + 3, 1 + 3]
    assert not masked[0, recorded[0]].any() and masked.sum() == 9

    cells = masked.view(1, 1, 3, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = torch.where(cells, torch.randn_like(imgs), imgs)
    assert torch.equal(network.encode(imgs, recorded), network.encode(other, recorded))
    assert not torch.equal(network.encode(imgs, recorded), network.encode(imgs + 1, recorded))


FAMILIES = {
    'vit_base_patch16_siglip_224': {},  # no class token
    'vit_small_patch14_reg4_dinov2': {},  # registers, positions of patches alone
    'vit_small_patch16_dinov3': {},  # rotates
    'vit_small_patch16_rope_mixed_224': {},  # a rotation of its own for each block
}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_learns_with_all_its_weights(name):
    patch = 14 if 'patch14' in name else 16
    heads = dict(embed_dim=48, depth=2, num_heads=3)
    vit = ViT(name, img_size=(3 * patch, 4 * patch), timm_args=heads)
    network = MaskedAutoencoder(vit, **DECODER)
    outputs = network(torch.randn(2, 3, 3 * patch, 4 * patch))
    sum(ReconstructionTask().loss(outputs['mae'], []).values()).backward()
    without = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_which_patches_are_masked_depends_on_the_seed_in_training_and_on_nothing_in_evaluation():
    network, imgs = autoencoder(), torch.randn(3, 3, *SIZE)

    def masks(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return network(imgs)['mae'].mask

    assert torch.equal(masks(1), masks(1)) and not torch.equal(masks(1), masks(2))
    assert not torch.equal(*masks(1)[:2])  # each image its own
    network.eval()
    assert torch.equal(masks(1), masks(2)) and torch.equal(masks(1)[2:], network(imgs[2:])['mae'].mask)


def test_images_of_another_size_run():
    network = autoencoder().eval()
    outputs = network(torch.randn(1, 3, 32, 96))['mae']
    assert outputs.grid == (2, 6) and outputs.patches.shape == (1, 12, 768)


def test_patches_are_rows_columns_colours():
    imgs = torch.arange(3 * 4 * 6).view(1, 3, 4, 6)
    patches = patchify(imgs, 2)  # 2 x 3 patches
    assert patches.shape == (1, 6, 12)
    assert patches[0, 4].tolist() == imgs[0, :, 2:4, 2:4].permute(1, 2, 0).flatten().tolist()


@pytest.mark.parametrize('norm_pix', [True, False])
def test_a_perfect_painter_gives_the_image_back(norm_pix):
    network = autoencoder(norm_pix=norm_pix).eval()
    pixels = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    outputs = network((pixels / 255 - mean) / std)['mae']
    outputs = outputs._replace(patches=outputs.target)
    meta = Meta(0, orig_size=SIZE, size=SIZE)
    (output,) = ReconstructionTask().predict(outputs, [meta])
    assert torch.equal(output.image, pixels[0]) and output.error == 0
    assert output.mask.shape == SIZE and output.mask.float().mean() == 0.75


def test_only_masked_patches_are_predicted_and_count():
    network = autoencoder().eval()
    outputs = network(torch.randn(1, 3, *SIZE))['mae']
    wrong = torch.where(outputs.mask[..., None], outputs.target + 2, outputs.target - 1)
    (output,) = ReconstructionTask().predict(outputs._replace(patches=wrong), [Meta(0, orig_size=SIZE, size=SIZE)])
    assert output.error == pytest.approx(4)
    (other,) = ReconstructionTask().predict(outputs, [Meta(0, orig_size=SIZE, size=SIZE)])
    assert torch.equal(output.image[:, ~output.mask], other.image[:, ~output.mask])


def test_padding_is_cut_off_before_the_original_size():
    network = autoencoder(norm_pix=False).eval()
    outputs = network(4 * torch.randn(1, 3, *SIZE))['mae']  # far beyond black and white
    (whole,) = ReconstructionTask().predict(outputs, [Meta(0, orig_size=SIZE, size=SIZE)])
    padded = Meta(0, orig_size=(20, 50), size=SIZE, image_size=(20, 50))
    (part,) = ReconstructionTask().predict(outputs, [padded])
    assert torch.equal(part.image, whole.image[:, :20, :50]) and torch.equal(part.mask, whole.mask[:20, :50])
    values = torch.where(outputs.mask[..., None], outputs.patches, outputs.target)
    pixels = values.unflatten(-1, (-1, 3)) * outputs.scale[:, :, None] + outputs.shift[:, :, None]
    label_map = torch.zeros(3, *SIZE)
    for location, patch in enumerate(pixels[0].view(12, 16, 16, 3)):
        row, column = 16 * (location // 4), 16 * (location % 4)
        label_map[:, row : row + 16, column : column + 16] = patch.permute(2, 0, 1)
    (small,) = ReconstructionTask().predict(outputs, [padded._replace(orig_size=(10, 25))])
    averaged = torch.nn.functional.interpolate(label_map[None, :, :20, :50], (10, 25), mode='bilinear', antialias=True)[
        0
    ]
    wanted = (averaged.clamp(0, 1) * 255).round().byte()
    assert torch.equal(small.image, wanted) and small.image.amin() == 0 and small.image.amax() == 255
    assert torch.equal(small.mask, whole.mask[1:20:2, 1:50:2])


def test_a_fresh_encoder_has_fixed_positions_and_another_keeps_its_own():
    fresh = autoencoder().backbone.model.pos_embed
    assert not fresh.requires_grad and fresh[0, 0].abs().max() == 0
    torch.testing.assert_close(fresh[0, 1:], sincos_table((3, 4), 48))
    backbone = encoder()
    before = backbone.model.pos_embed.clone()
    kept = MaskedAutoencoder(backbone, **DECODER, fresh=False).backbone.model.pos_embed
    assert kept.requires_grad and torch.equal(kept, before)


def test_positions_of_the_paper():
    table = sincos_table((2, 3), 8)
    assert table.shape == (6, 8)
    one, hundredth = torch.tensor(1.0), torch.tensor(0.01)
    column, row = table[1], table[3]  # (0, 1) and (1, 0)
    expected = torch.stack([one.sin(), hundredth.sin(), one.cos(), hundredth.cos()])
    torch.testing.assert_close(column[:4], expected)
    torch.testing.assert_close(row[4:], expected)
    assert column[4:].tolist() == row[:4].tolist() == [0, 0, 1, 1]


def test_what_cannot_be_is_refused():
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match='mask_ratio'):
            autoencoder(mask_ratio=ratio)
    with pytest.raises(ConfigError, match='fresh'):
        MaskedAutoencoder(dict(type=ViT, name='vit_tiny_patch16_224', pretrained='weights.safetensors'))
    with pytest.raises(ConfigError, match='frozen'):
        MaskedAutoencoder(ViT('vit_tiny_patch16_224', frozen=True, timm_args=dict(depth=1)), **DECODER)
    with pytest.raises(ConfigError, match='multiple of 4'):
        autoencoder(decoder_channels=30, decoder_heads=2)
    with pytest.raises(ValueError, match='decoder_heads'):
        autoencoder(decoder_channels=36, decoder_heads=8)
    with pytest.raises(DataError, match='padding'):
        autoencoder()(torch.zeros(1, 3, *SIZE), torch.zeros(1, *SIZE, dtype=torch.bool))
