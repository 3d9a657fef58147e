"""P5: inference of ViT-B + UPerNet at 512 x 512 against transformers, at equal weights.

    python benchmarks/upernet.py [--rounds 7] [--size 512]

The peer is `UperNetForSemanticSegmentation` on a BEiT backbone with absolute positions, which is ViT-B with layer scale
and the four-level pyramid; its weights are copied into ours and the logits compared before anything is timed. One torch
thread. Bars: fp32 >= 1.1x, bf16 (ours under autocast, the peer as it comes, fp32) >= 3x.
"""

from __future__ import annotations

import argparse
import time

import torch
from paired import paired
from torch import Tensor, nn
from torch.nn import functional
from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

from vitdense.adapters.pyramid import LayerPyramid
from vitdense.backbones.vit import ViT
from vitdense.heads.upernet import UPerNetHead
from vitdense.networks.shared import SharedNetwork

LAYERS = (3, 5, 7, 11)
NUM_CLASSES = 150
RENAMED = {  # theirs -> ours, in this order
    'backbone.beit.embeddings.cls_token': 'backbone.model.cls_token',
    'backbone.beit.embeddings.position_embeddings': 'backbone.model.pos_embed',
    'backbone.beit.embeddings.patch_embeddings.projection': 'backbone.model.patch_embed.proj',
    'backbone.beit.layers.': 'backbone.model.blocks.',
    '.layernorm_before': '.norm1',
    '.layernorm_after': '.norm2',
    '.attention.o_proj': '.attn.proj',
    '.lambda_1': '.ls1.gamma',
    '.lambda_2': '.ls2.gamma',
    'backbone.fpn.fpn1.conv_transpose1': 'adapters.sem.stages.0.0',
    'backbone.fpn.fpn1.normalization': 'adapters.sem.stages.0.1',
    'backbone.fpn.fpn1.conv_transpose2': 'adapters.sem.stages.0.3',
    'backbone.fpn.fpn2': 'adapters.sem.stages.1',
    'decode_head.psp_modules.': 'heads.sem.pooling.projections.',
    'decode_head.bottleneck': 'heads.sem.pooling.bottleneck',
    'decode_head.lateral_convs': 'heads.sem.laterals',
    'decode_head.fpn_convs': 'heads.sem.smooths',
    'decode_head.fpn_bottleneck': 'heads.sem.fuse',
    'decode_head.classifier': 'heads.sem.classifier',
    '.batch_norm.': '.norm.',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--size', type=int, default=512, help='side of the square image in pixels')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    theirs, ours = peer(arguments.size), network(arguments.size)
    copy_weights(theirs, ours)
    imgs = torch.randn(1, 3, arguments.size, arguments.size)

    def run_theirs() -> Tensor:
        return theirs(imgs).logits

    def run_ours() -> Tensor:
        outputs = ours(imgs)['sem']
        return functional.interpolate(outputs.logits, size=outputs.input_size, mode='bilinear', align_corners=False)

    def in_bf16(run):
        def cast() -> Tensor:
            with torch.autocast('cpu', torch.bfloat16):
                return run()

        return cast

    with torch.inference_mode():
        for name, run, bound in (('fp32', run_ours, 1e-4), ('bf16', in_bf16(run_ours), 5e-2)):
            error = ((run().float() - run_theirs()).abs().max() / run_theirs().abs().max()).item()
            print(f'{name}: largest difference of logits / largest logit = {error:.1e}', flush=True)
            assert error < bound, 'the two models do not compute the same'
        for name, a, b, bar in (
            ('fp32 against fp32', run_theirs, run_ours, 1.1),
            ('bf16 against fp32', run_theirs, in_bf16(run_ours), 3.0),
            ('bf16 against bf16', in_bf16(run_theirs), in_bf16(run_ours), None),
        ):
            ratio = paired(a, b, arguments.rounds, clock=time.process_time)
            verdict = '' if bar is None else f'   bar {bar}x: {"reached" if ratio.median >= bar else "MISSED"}'
            print(f'{name}: {ratio}{verdict}', flush=True)


def peer(size: int) -> nn.Module:
    """Return transformers' ViT-B + UPerNet with random weights; every norm, bias and scale changes the output."""
    backbone = BeitConfig(
        image_size=size,
        use_absolute_position_embeddings=True,
        use_mask_token=False,
        layer_scale_init_value=1.0,
        layer_norm_eps=1e-6,
        out_features=[f'stage{index + 1}' for index in LAYERS],
        reshape_hidden_states=True,
        add_fpn=True,
    )
    config = UperNetConfig(backbone_config=backbone, use_auxiliary_head=False, num_labels=NUM_CLASSES)
    model = UperNetForSemanticSegmentation(config).eval()
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1 or 'position' in name or 'cls' in name:
            nn.init.normal_(tensor, mean=0.0 if 'bias' in name or tensor.ndim > 1 else 1.0, std=0.02)
    return model


def network(size: int) -> nn.Module:
    vit = ViT('vit_base_patch16_224', img_size=size, timm_args=dict(init_values=1.0))
    branch = dict(
        adapter=LayerPyramid(vit.embed_dim, vit.patch_size, layers=LAYERS),
        head=dict(type=UPerNetHead, aux_index=None),
    )
    return SharedNetwork(vit, {'sem': branch}, num_classes=dict(sem=NUM_CLASSES)).eval()


def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Copy every weight of the peer; only the final norm, which neither reads, keeps its own."""
    state, qkv = {}, {}
    for key, tensor in theirs.state_dict().items():
        for their_name, our_name in RENAMED.items():
            key = key.replace(their_name, our_name)
        if key.startswith('heads.sem.pooling.projections.'):
            key = key.replace('.1.', '.', 1) if key.split('.')[5] == '1' else key
        if '.attention.' in key:
            qkv[key] = tensor
        else:
            state[key] = tensor
    for block in range(len(ours.backbone.model.blocks)):
        names = [f'backbone.model.blocks.{block}.attention.{part}_proj' for part in 'qkv']
        weights = [qkv[f'{name}.weight'] for name in names]
        biases = [qkv.get(f'{name}.bias', torch.zeros(len(weights[0]))) for name in names]  # BEiT: keys have no bias
        state[f'backbone.model.blocks.{block}.attn.qkv.weight'] = torch.cat(weights)
        state[f'backbone.model.blocks.{block}.attn.qkv.bias'] = torch.cat(biases)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if 'layernorm' not in key]
    assert not unexpected and all(key.startswith('backbone.model.norm.') for key in missing), (missing, unexpected)


if __name__ == '__main__':
    main()
