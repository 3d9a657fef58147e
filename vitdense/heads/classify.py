"""Image classification heads: pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vitdense.arguments import check, check_choice
from vitdense.ops.padding import extents_of, map_extents, rectangles, resize, zero_padding
from vitdense.storage.weights import load_weights
from vitdense.types import Classifier, ClassLayer, ClassOutputs, Features

Pool = Literal['token', 'average', 'both', 'attention']


class ClassHead(nn.Module):
    """Pooling, normalisation, dropout and one linear layer.

    `pool` is the pooling of the image: 'token', the class tokens of all layers the adapter requests, side by
    side; 'average', the mean of every map over the cells of the image; 'both', the class tokens and the mean of the
    last map (linear evaluation of DINOv2, https://arxiv.org/abs/2304.07193, appendix B.3); 'attention', a learned
    query that attends to the cells of all maps, then an MLP (the head of SigLIP and of attentive probing; `num_heads`
    of 64 channels unless given).

    `norm` is 'batch', without learned gains (linear probe of MAE, https://arxiv.org/abs/2111.06377, appendix A.1),
    'layer' (fine-tuning of MAE on averaged tokens) or 'none'. `init_std` is the spread of the linear layer at the
    start. `cls_channels` are the widths of the class tokens, where they are not those of the maps.

    `pretrained` takes the classifier of the backbone's checkpoint over, by way of `SharedNetwork`; pooling and norm
    must be those of the checkpoint, and the error says which they are.

    Raises ConfigError for a word that is unknown, and for a class token that the backbone does not have.
    """

    class_layers = (ClassLayer('classifier'),)

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        pool: Pool = 'token',
        norm: Literal['batch', 'layer', 'none'] = 'none',
        dropout: float = 0.0,
        num_heads: int | None = None,
        init_std: float = 0.01,
        pretrained: bool = False,
        cls_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        norms = {
            'batch': partial(nn.BatchNorm1d, affine=False, eps=1e-6),
            'layer': partial(nn.LayerNorm, eps=1e-6),
            'none': nn.Identity,
        }
        check_choice('ClassHead.pool', pool, get_args(Pool))
        check_choice('ClassHead.norm', norm, tuple(norms))
        self.strides, self.num_classes = tuple(strides), num_classes
        self.pool, self.kind_of_norm, self.pretrained = pool, norm, pretrained
        self.cls_channels = tuple(in_channels if cls_channels is None else cls_channels)
        width = self._width(in_channels)
        if pool == 'attention':
            self.attn_pool = AttentionPoolLatent(
                width, num_heads=num_heads or max(width // 64, 1), mlp_ratio=4.0, norm_layer=norms['layer']
            )
        self.norm = norms[norm](width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=init_std)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Features) -> ClassOutputs:
        """Read `features.cls` and `features.maps`; return logits (B, num_classes)."""
        x = self.embed(features)
        alone = self.training and isinstance(self.norm, nn.BatchNorm1d) and len(x) == 1
        fix = 'train with a batch of at least 2 images per process'
        check(not alone, 'ClassHead.norm', 'batch', 'batch normalisation: a single image has no variance', fix)
        return ClassOutputs(self.classifier(self.dropout(self.norm(x))))

    def embed(self, features: Features) -> Tensor:
        """Return the embedding of each image, (B, width): the pooled tokens, before norm and linear layer."""
        if self.pool == 'token':
            return torch.cat(list(features.cls), dim=1)
        if self.pool == 'average':
            return torch.cat([self._average(features, index) for index in range(len(features.maps))], dim=1)
        if self.pool == 'both':
            return torch.cat([*features.cls, self._average(features, len(features.maps) - 1)], dim=1)
        return self._attend(features)

    def load_classifier(self, classifier: Classifier) -> None:
        """Take over the classifier of a checkpoint, all of it. Raises ConfigError when it is built otherwise."""
        weight = classifier.weights['classifier.weight']
        norm = 'layer' if 'norm.weight' in classifier.weights else 'none'
        own = (self.pool, self.kind_of_norm)
        why = (
            f"the classifier in {classifier.where} pools by '{classifier.pool}', with {norm.replace('none', 'no')} norm"
        )
        fix = f"write head=dict(type=ClassHead, pool='{classifier.pool}', norm='{norm}', pretrained=True)"
        check(own == (classifier.pool, norm), 'ClassHead(pool, norm)', own, why, fix)
        why = f'the classifier in {classifier.where} has {len(weight)} classes, those that it was trained on'
        fix = (
            "give the data set these classes (ImageNet-1k: classes='imagenet1k'), or train a classifier with\n"
            'pretrained=False in the head'
        )
        check(len(weight) == self.num_classes, 'ClassHead.num_classes', self.num_classes, why, fix)
        load_weights(self, classifier.weights, where=f'{classifier.where}, classifier')

    def _width(self, in_channels: Sequence[int]) -> int:
        """Return the width of the embedding."""
        bare = self.pool in ('token', 'both') and not self.cls_channels
        check(not bare, 'ClassHead.pool', self.pool, 'this backbone has no class token', "use 'average'")
        widths = {'token': sum(self.cls_channels), 'both': sum(self.cls_channels) + in_channels[-1]}
        return widths.get(self.pool, sum(in_channels))

    def _average(self, features: Features, index: int) -> Tensor:
        """Return (B, C): the mean of map `index` over the cells of each image."""
        x = features.maps[index]
        extents = map_extents(features.valid, self.strides[index], tuple(x.shape[-2:]))
        if extents is None:
            return x.mean((2, 3))
        return zero_padding(x, extents).sum((2, 3)) / extents.prod(1, keepdim=True)

    def _attend(self, features: Features) -> Tensor:
        """Return (B, C): attention pooling by a learned query over the maps, resized to the grid of the finest."""
        size = tuple(features.maps[0].shape[-2:])
        extents = extents_of(features.valid, features.maps, self.strides)
        x = torch.cat([resize(x, size, used) for x, used in zip(features.maps, extents, strict=True)], dim=1)
        x = zero_padding(x, extents[0]).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h*w, C)
        mask = None if extents[0] is None else rectangles(extents[0], size).flatten(1)[:, None, None]  # (B, 1, 1, h*w)
        return self.attn_pool(x, attn_mask=mask)
