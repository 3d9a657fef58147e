"""EoMT has the outputs of transformers' Eomt and EomtDinov3, with the same random weights."""

import pytest
import torch
from torch import Tensor, nn
from transformers import EomtConfig, EomtDinov3Config, EomtDinov3ForUniversalSegmentation, EomtForUniversalSegmentation

from tests.heads.from_transformers import gradient_error, gradients_of
from vitdense.backbones.vit import ViT
from vitdense.networks.eomt import EoMT
from vitdense.tasks.mask_classification import InstanceTask
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.tasks.mask_matching import MaskMatcher
from vitdense.types import Target

CONTEXT = dict(
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=3,
    num_blocks=2,
    num_queries=6,
    num_labels=5,
    patch_size=16,
    num_upscale_blocks=2,
    train_num_points=64,
    attn_implementation='eager',
)
COMMON = {  # theirs -> ours
    'query.': 'q.',
    'class_predictor.': 'class_head.',
    'mask_head.fc1.': 'mask_head.0.',
    'mask_head.fc2.': 'mask_head.2.',
    'mask_head.fc3.': 'mask_head.4.',
    'upscale_block.block.': 'upscale.',
    'layernorm2d.': 'norm.',
    'layernorm.': 'backbone.model.norm.',
    'layers.': 'backbone.model.blocks.',
    'attention.': 'attn.',
    'embeddings.cls_token': 'backbone.model.cls_token',
    'embeddings.register_tokens': 'backbone.model.reg_token',
}
DINOV2 = COMMON | {
    'out_proj.': 'proj.',
    'layer_scale1.lambda1': 'ls1.gamma',
    'layer_scale2.lambda1': 'ls2.gamma',
    'embeddings.position_embeddings.weight': 'backbone.model.pos_embed',
    'embeddings.patch_embeddings.projection.': 'backbone.model.patch_embed.proj.',
}
DINOV3 = COMMON | {
    'o_proj.': 'proj.',
    'mlp.up_proj.': 'mlp.fc1.',
    'mlp.down_proj.': 'mlp.fc2.',
    'layer_scale1.lambda1': 'gamma_1',
    'layer_scale2.lambda1': 'gamma_2',
    'embeddings.patch_embeddings.': 'backbone.model.patch_embed.proj.',
}


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    ours = {}
    for key, value in state.items():
        if key.startswith('criterion.') or key in ('rope_embeddings.inv_freq', 'embeddings.mask_token'):
            continue
        for their_name, our_name in names.items():
            key = key.replace(their_name, our_name)
        ours[key] = value[None] if key.endswith('pos_embed') else value
    for key in [key for key in ours if '.q_proj.weight' in key]:
        location = key.removesuffix('q_proj.weight')
        ours[f'{location}qkv.weight'] = torch.cat([ours.pop(f'{location}{part}_proj.weight') for part in 'qkv'])
        biases = {
            part: ours.pop(f'{location}{part}_proj.bias') for part in 'qkv' if f'{location}{part}_proj.bias' in ours
        }
        if 'k' in biases:
            ours[f'{location}qkv.bias'] = torch.cat(list(biases.values()))
        else:  # DINOv3: keys have no bias
            ours |= {f'{location}{part}_bias': bias for part, bias in biases.items()}
    return ours


def models(kind: str) -> tuple[nn.Module, EoMT]:
    torch.manual_seed(0)
    context = dict(embed_dim=48, depth=4, num_heads=3)
    if kind == 'dinov2':
        theirs = EomtForUniversalSegmentation(EomtConfig(**CONTEXT, image_size=64, mlp_ratio=4))
        vit, names = ViT('vit_small_patch14_reg4_dinov2', patch_size=16, img_size=64, timm_args=context), DINOV2
    else:
        config = EomtDinov3Config(
            **CONTEXT, image_size=64, intermediate_size=192, layer_norm_eps=1e-5
        )  # as DINOv3 has it
        theirs = EomtDinov3ForUniversalSegmentation(config)
        vit, names = ViT('vit_small_patch16_dinov3_qkvb', img_size=64, timm_args=context), DINOV3
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if 'norm' in name else parameter.normal_(std=0.15)
    ours = EoMT(vit, num_queries=6, num_blocks=2, num_classes={'sem': 5})
    ours.load_state_dict(renamed(theirs.state_dict(), names))
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize('kind', ['dinov2', 'dinov3'])
@pytest.mark.parametrize('shares', [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_outputs_are_those_of_transformers(kind: str, shares: tuple[float, float]) -> None:
    theirs, ours = models(kind)
    theirs.attn_mask_probs.copy_(torch.tensor(shares))
    ours.set_masking(shares)
    imgs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, got = theirs(imgs), ours(imgs)['sem']
    assert got.mask_logits.shape == (2, 6, 16, 16) and got.input_size == (64, 64)
    assert wanted.masks_queries_logits.std() > 0.1
    assert (got.class_logits - wanted.class_queries_logits).abs().max() < 1e-4
    assert (got.mask_logits - wanted.masks_queries_logits).abs().max() < 1e-4 * wanted.masks_queries_logits.abs().max()


@pytest.mark.parametrize('kind', ['dinov2', 'dinov3'])
def test_a_step_with_all_losses_and_gradients_is_that_of_transformers(kind: str, monkeypatch) -> None:
    def sampled(*shape: int, **_: object) -> Tensor:
        """Random numbers that depend on their count alone: the layers are compared in another order."""
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(shape.numel()))

    theirs, ours = (model.train() for model in models(kind))
    if kind == 'dinov3':  # the rescaling of positions in training is random
        theirs.rope_embeddings.rescale = theirs.config.pos_embed_rescale = None
    theirs.attn_mask_probs.fill_(1.0)
    ours.set_masking((1.0, 1.0))
    targets = []
    for count in (3, 2):
        masks = torch.zeros(count, 64, 64, dtype=torch.bool)
        for row, mask in enumerate(masks):
            mask[8 * row : 8 * row + 30, 10 * row : 10 * row + 25] = True
        targets.append(Target(masks=masks, labels=torch.randint(5, (count,))))
    imgs = torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(torch, 'rand', sampled)
    masks, labels = [target.masks.float() for target in targets], [target.labels for target in targets]
    wanted = theirs(imgs, mask_labels=masks, class_labels=labels).loss
    task = InstanceTask(losses=MaskLoss(matcher=MaskMatcher(num_points=64), num_points=64))
    losses = task.loss(ours(imgs)['sem'], targets)
    assert sum(losses.values()).item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward(), sum(losses.values()).backward()
    expected = renamed(gradients_of(theirs), DINOV2 if kind == 'dinov2' else DINOV3)
    assert gradient_error(gradients_of(ours), expected) < 1e-4
