"""Mapping from publishers' model names (hub, torch.hub, file names) to timm's names of the same weights."""

from __future__ import annotations

import re

from vitdense.arguments import check

_HUB = re.compile(r'(?:hf[-_]hub:|https://huggingface\.co/)?timm/')
_SIZES = {'ti': 'tiny', 's': 'small', 'b': 'base', 'l': 'large', 'g': 'giant', 'h': 'huge'}
_NAMED = '(tiny|small|base|large|giant|huge)'
_RULES: tuple[tuple[str, str], ...] = (  # names in lower case without their owner; {0}, {1} are the groups
    (r'dinov2_vit([sblg])14_(?:reg4?|reg4?_lc|reg4_pretrain)', 'vit_{0}_patch14_reg4_dinov2.lvd142m'),
    (r'dinov2_vit([sblg])14(?:_lc|_pretrain)?', 'vit_{0}_patch14_dinov2.lvd142m'),
    (rf'dinov2-with-registers-{_NAMED}', 'vit_{0}_patch14_reg4_dinov2.lvd142m'),
    (rf'dinov2-{_NAMED}', 'vit_{0}_patch14_dinov2.lvd142m'),
    (r'dinov3[-_]vit([sh])16plus(?:[-_]pretrain)?(?:[-_]lvd1689m)?', 'vit_{0}_plus_patch16_dinov3.lvd1689m'),
    (r'dinov3[-_]vit(l|7b)16[-_]pretrain[-_]sat493m', 'vit_{0}_patch16_dinov3.sat493m'),
    (r'dinov3[-_]vit([sbl]|7b)16(?:[-_]pretrain)?(?:[-_]lvd1689m)?', 'vit_{0}_patch16_dinov3.lvd1689m'),
    (r'dino[-_]vit([sb])(8|16)(?:_pretrain)?', 'vit_{0}_patch{1}_224.dino'),
    (r'(?:mae_pretrain_vit_|vit-mae-)(base|large)', 'vit_{0}_patch16_224.mae'),
    (r'(?:mae_pretrain_vit_|vit-mae-)(huge)', 'vit_{0}_patch14_224.mae'),
    (r'vit-(base|large)-patch16-224-in21k', 'vit_{0}_patch16_224.augreg_in21k'),
    (r'vit-(base|large)-patch16-(224|384)', 'vit_{0}_patch16_{1}.augreg_in21k_ft_in1k'),
    (r'vit[-_]?([bl])[-_](16)', 'vit_{0}_patch{1}_224.augreg_in21k'),
    (r'deit-(tiny|small|base)-patch16-224', 'deit_{0}_patch16_224.fb_in1k'),
    (r'deit-(tiny|small|base)-distilled-patch16-224', 'deit_{0}_distilled_patch16_224.fb_in1k'),
    (r'siglip-(base|large)-patch16-(256|384)', 'vit_{0}_patch16_siglip_{1}.webli'),
    (r'siglip-base-patch16-(224|512)', 'vit_base_patch16_siglip_{0}.webli'),
    (r'siglip2-(base|large)-patch16-(256|384|512)', 'vit_{0}_patch16_siglip_{1}.v2_webli'),
    (r'siglip-so400m-patch14-(224|384)', 'vit_so400m_patch14_siglip_{0}.webli'),
    (r'clip-vit-base-patch(16|32)', 'vit_base_patch{0}_clip_quickgelu_224.openai'),
    (r'clip-vit-large-patch14', 'vit_large_patch14_clip_quickgelu_224.openai'),
)


def plain_name(name: str) -> str:
    """Return timm's name of a model without the prefix of timm's hub (`hf_hub:timm/NAME`)."""
    matched = _HUB.match(name)
    return name[matched.end() :] if matched else name


def timm_name(name: str) -> str | None:
    """Return timm's name of the weights with the publisher's name `name` (`dinov2_vits14`, `facebook/dinov2-small`)."""
    own = name.lower().rpartition(':')[2].rpartition('/')[2].removesuffix('.pth')
    for pattern, theirs in _RULES:
        matched = re.fullmatch(pattern, own)
        if matched:
            return theirs.format(*(_SIZES.get(word, word) for word in matched.groups()))
    return None


def check_name(name: str) -> None:
    """Raise ConfigError for names of other publishers and hubs; unknown names of timm are checked by `make_model`."""
    theirs = timm_name(name)
    why = 'it is the name that its publisher gives it; models are made by timm, which has names of its own'
    fix = f"write name='{theirs}'; with pretrained='PATH' the publisher's own file is read too"
    check(theirs is None, 'ViT.name', name, why, fix)
    why = 'it is the address of a model on a hub; only those of timm (timm/NAME) can be fetched by name'
    fix = "download its weight file, and give timm's name of the architecture and pretrained='model.safetensors'"
    check('/' not in name and ':' not in name, 'ViT.name', name, why, fix)
