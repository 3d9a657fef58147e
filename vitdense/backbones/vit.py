"""Vision Transformer backbones of timm: feature maps of any set of layers in one pass.

The steps of the forward pass (embed, insert, keep, run, norm, fold) are methods, for networks that combine them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import eva
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vitdense.arguments import check
from vitdense.backbones.positions import Positions
from vitdense.backbones.relative import add_bias, run_biased
from vitdense.backbones.stem import set_stem
from vitdense.backbones.tokens import Tokens, cut, insert, join_masks, keep, own_grids, whole, without_padding
from vitdense.backbones.windows import WindowPartition, draw_per_image, run_merged, run_windows
from vitdense.errors import DataError
from vitdense.layers.lora import Lora
from vitdense.pretrained.creation import create, read_classifier
from vitdense.registry import build
from vitdense.types import Classifier, Features, LayerRequest


class ViT(nn.Module):
    """A Vision Transformer of timm (families `VisionTransformer` and `Eva`) that returns feature maps.

    `name` is timm's, with or without tag. `pretrained` is True (timm's hub), the path of a file, or False; of several
    sets of weights in a file, `PATH:KEY` takes one (`file.pth:teacher`). Loading is
    strict; `partial_weights=True` takes what fits, and a list of words (`['ls1', 'ls2']`) allows only parameters named
    so to be absent from the file. `patch_size` other than the checkpoint's resamples the patch kernel
    (FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4) and keeps the position table; `img_size`, a side or
    (H, W) in pixels, resamples that table to the grid of such an image. Neither limits the images: any size that is a
    multiple of the patch runs, with positions resampled in the forward pass. A file holds the number of its positions,
    not their grid: where that is not the default of the model, give `img_size`, or, for a table to be resampled,
    `pretrained_img_size`, the size of the images it was trained on.

    `drop_path` is the rate of stochastic depth in the last block, growing linearly from 0. `frozen` fixes weights
    and evaluation mode, also after `train()`, and records no graph; `amp='bf16'` then runs it under autocast.
    `checkpointing` recomputes blocks in the backward pass to save memory. `windows`, a `WindowPartition` or its config,
    lets most blocks attend within windows. `lora`, a `Lora` or its config, freezes all but low-rank corrections of its
    linear layers. `stem='conv'` embeds images by convolutions (`ConvStem`), with which a ViT trains from scratch in
    far fewer steps. `relative_bias` gives every block a learned bias for each offset between patches (`RelativeBias`),
    as mmsegmentation's MAE does. `timm_args` go to `timm.create_model`.

    Attributes: `embed_dim`, `depth`, `patch_size`, `divisor` of the sides of images, `mean` and `std`
    of the checkpoint (RGB in [0, 1]), `num_prefix_tokens`, `has_cls`, `decided`: the arguments `patch_size` and
    `img_size` that make the same ViT without the file, where the file decided them, `omitted_weights`: names of
    frozen weights from the file of `pretrained`, which checkpoints of a run may omit.

    Raises ConfigError for invalid arguments, CheckpointError for weights that do not fit or are unavailable.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | Path = False,
        partial_weights: bool | Sequence[str] = False,
        patch_size: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        pretrained_img_size: int | tuple[int, int] | None = None,
        drop_path: float = 0.0,
        frozen: bool = False,
        checkpointing: bool = False,
        amp: Literal['bf16'] | None = None,
        windows: WindowPartition | dict | None = None,
        lora: Lora | dict | None = None,
        stem: Literal['patch', 'conv'] = 'patch',
        relative_bias: bool = False,
        timm_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_modes(amp, frozen, lora, stem, bool(pretrained))
        self._source = dict(name=name, pretrained=pretrained, timm_args=timm_args)
        sizes = dict(patch_size=patch_size, img_size=img_size, pretrained_img_size=pretrained_img_size)
        self.model, self.decided = create(**self._source, **sizes, partial_weights=partial_weights, drop_path=drop_path)
        self.stem, self.relative_bias = stem, relative_bias
        set_stem(self.model, stem)
        self.frozen, self.checkpointing = frozen, checkpointing
        self.amp = torch.bfloat16 if amp == 'bf16' else None
        self.embed_dim: int = self.model.embed_dim
        self.depth = len(self.model.blocks)
        self.divisor = self.patch_size = int(self.model.patch_embed.patch_size[0])
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.has_cls = self.model.cls_token is not None
        self.mean, self.std = (tuple(self.model.pretrained_cfg[key]) for key in ('mean', 'std'))
        self._rotates = isinstance(self.model, eva.Eva)  # whose blocks take a rotation
        self.windows: WindowPartition | None = build(windows)
        self._windowed = self.windows.blocks(self.depth) if self.windows is not None else frozenset()
        for index in self._windowed:
            draw_per_image(self.model.blocks[index])
        if relative_bias:
            add_bias(self.model, windowed=self.windows is not None)
        self._positions = Positions(self.model, fixed=frozen or lora is not None)
        self._mode, self._frozen_below = True, 0  # the last arguments of `train` and `freeze_below`
        self._frozen_parameters: list[nn.Parameter] = []  # by `freeze_below`
        self.omitted_weights: tuple[str, ...] = ()
        if lora is not None:
            self._insert(build(lora), recoverable=bool(pretrained) and not partial_weights)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> ViT:
        """Set training mode; a frozen ViT, and frozen layers of any, stay in evaluation mode."""
        self._mode = mode
        super().train(mode and not self.frozen and self._frozen_below < self.depth + 2)
        if self._frozen_below:
            below = ('patch_embed', 'pos_drop', 'patch_drop', 'norm_pre', 'rope')
            parts = [part for name in below if (part := getattr(self.model, name, None)) is not None]
            for part in (*parts, *self.model.blocks[: self._frozen_below - 1]):
                part.eval()
        return self

    def freeze_below(self, layer: int) -> None:
        """Freeze the layers below `layer`, as `layer_of` counts them, and unfreeze the others: 0 unfreezes all, depth +
        2 freezes all. Frozen layers keep evaluation mode; parameters frozen otherwise stay frozen.
        """
        for parameter in self._frozen_parameters:
            parameter.requires_grad_(True)
        trained = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._frozen_parameters = [parameter for name, parameter in trained if self.layer_of(name) < layer]
        for parameter in self._frozen_parameters:
            parameter.requires_grad_(False)
        self._frozen_below = layer
        self.train(self._mode)

    def forward(
        self, imgs: Tensor, valid: Tensor | None = None, *, layers: Sequence[LayerRequest | tuple[int, bool]]
    ) -> Features:
        """Return the maps (and class tokens) of the requested layers, in that order, from one pass.

        `imgs` is (B, 3, H, W) float, normalised; `valid` as in `Batch`. Blocks behind the last requested one do not
        run. Where `valid` is given, each image has the positions of its own grid, padding is masked in
        attention, and maps are zero in cells that are all padding: outputs equal those of the single image.
        """
        requests = [LayerRequest(self._block(index), normed) for index, normed in layers]
        graph = torch.no_grad() if self.frozen else nullcontext()
        cast = nullcontext() if self.amp is None else torch.autocast(imgs.device.type, self.amp)
        with graph, cast:
            tokens = self.embed(imgs, valid)
            outputs: dict[LayerRequest, Tokens] = {}
            start = 0
            for stop in sorted({request.index + 1 for request in requests}):
                tokens = self._advance(tokens, start, stop)
                start = stop
                outputs |= {request: self._read(tokens, request) for request in requests if request.index + 1 == stop}
        return Features(
            layers=tuple(without_padding(self.fold(outputs[request]), tokens) for request in requests),
            cls=tuple(outputs[request].x[:, 0] for request in requests) if self.has_cls else (),
            valid=valid,
            input_size=tuple(imgs.shape[-2:]),
        )

    def embed(self, imgs: Tensor, valid: Tensor | None = None) -> Tokens:
        """Cut images (B, 3, H, W) into patches and give them positions, each image those of its own grid.

        Raises DataError when a side is not a multiple of the patch.
        """
        _check_size(imgs, valid, self.patch_size)
        padding = () if self.stem == 'patch' else (valid,)  # a patch embedding reads no neighbours
        x = self.model.patch_embed(imgs, *padding)  # (B, h, w, C)
        grid = (x.shape[1], x.shape[2])
        cells, grids = own_grids(valid, grid, self.patch_size)
        x = x.flatten(1, 2)  # (B, h * w, C)
        prefix = self._prefix_tokens()
        if self.model.pos_embed is not None:
            shared, positions = self._positions.absolute(grid, grids)
            x = x + positions
            prefix = prefix if shared is None else prefix + shared
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1) if self.num_prefix_tokens else x.contiguous()
        x = self.model.norm_pre(self.model.pos_drop(x))
        mask = None
        if cells is not None:
            mask = functional.pad(cells.flatten(1), (self.num_prefix_tokens, 0), value=True)[:, None, None]
        return Tokens(x, grid, self._positions.rotations(grid, grids), mask, grids)

    def insert(self, tokens: Tokens, queries: Tensor) -> Tokens:
        """Insert `queries` (B, Q, C) behind the prefix tokens. All tokens attend to them; they are not rotated."""
        return insert(tokens, queries, prefix=self.num_prefix_tokens)

    def keep(self, tokens: Tokens, rows: Tensor) -> Tokens:
        """Keep the patches `rows` (B, K) int64 of each image, in that order, and all tokens before the patches.

        The result can be passed to `run` and `norm`, but is no map: its grid is (1, K). Raises ConfigError where blocks
        attend within windows, or by offsets on the map.
        """
        for name, used in (('windows', self.windows), ('relative_bias', self.relative_bias)):
            why = 'a part of the patches is a set, not a map with windows and offsets'
            check(not used, f'ViT.{name}', used, why, f'leave {name} out: fewer patches cost less already')
        return keep(tokens, rows, prefix=self.num_prefix_tokens, mixed=self._positions.mixed)

    def run(
        self, tokens: Tokens, start: int = 0, stop: int | None = None, *, attn_mask: Tensor | None = None
    ) -> Tokens:
        """Run the blocks [start, stop). `attn_mask`, bool (True = may attend) or added to the scores, broadcasts to
        (B, heads, N, N); padding stays masked. Windows are joined again behind the last block.

        Raises ConfigError for an `attn_mask` where blocks attend within windows.
        """
        stop = self.depth if stop is None else stop
        if attn_mask is not None:
            why = f'the blocks {start} to {stop - 1} have a mask over all tokens, which has no meaning inside a window'
            fix = f'make them global: global_blocks that contain {start} ... {stop - 1}'
            check(self._windowed.isdisjoint(range(start, stop)), 'ViT.windows', self.windows, why, fix)
        return whole(self._advance(tokens, start, stop, attn_mask))

    def _advance(self, tokens: Tokens, start: int, stop: int, attn_mask: Tensor | None = None) -> Tokens:
        """Run blocks; the output stays cut into windows, so that reading a layer does not change the next blocks."""
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        layout = tokens.layout
        each = self.windows is not None and self.windows.prefix == 'each' and attn_mask is None
        each = each and tokens.num_special_tokens > 0
        for index in range(start, stop):
            if index not in self._windowed and not each:
                tokens = whole(tokens)
            elif tokens.layout is None:
                tokens = cut(tokens, self.windows, layout)
                layout = tokens.layout
            step, named = self._step(index, tokens, attn_mask)
            x = checkpoint(step, tokens.x, use_reentrant=False, **named) if recompute else step(tokens.x, **named)
            tokens = tokens._replace(x=x)
        return tokens

    def _step(self, index: int, tokens: Tokens, attn_mask: Tensor | None) -> tuple[Callable, dict[str, Any]]:
        """Return the function that runs block `index` on these tokens, and its keyword arguments."""
        block, layout = self.model.blocks[index], tokens.layout
        rope = tokens.rope[index] if self._positions.mixed and tokens.rope is not None else tokens.rope
        if layout is None:
            named = {'attn_mask': join_masks(attn_mask, tokens.mask)}
            if self.relative_bias:
                block = partial(run_biased, block, grid=tokens.grid, grids=tokens.grids)
        elif index not in self._windowed:  # each window keeps its prefix
            named = {'attn_mask': layout.merged_mask()}
            rope = None if rope is None else layout.merged_rotation(rope, tokens.grid)
            block = partial(run_merged, block, layout=layout)
        else:
            named = {'attn_mask': layout.mask}
            rope = None if rope is None else layout.rotation(rope, tokens.grid)
            block = partial(run_windows, block, windows=layout.count)
        return block, {**named, 'rope': rope} if self._rotates else named

    def norm(self, tokens: Tokens) -> Tokens:
        """Apply the final norm of the checkpoint (nothing, for the few models that have none)."""
        return tokens._replace(x=self.model.norm(tokens.x))

    def fold(self, tokens: Tokens) -> Tensor:
        """Return the patches as a map (B, C, h, w), without copying."""
        height, width = tokens.grid
        patches = tokens.x[:, tokens.x.shape[1] - height * width :]
        return patches.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, h * w, C) -> (B, C, h, w)

    @property
    def grid(self) -> tuple[int, int]:
        """The (h, w) of the table of positions; that of the usual image, where there is no such table."""
        return tuple(self.model.patch_embed.grid_size)

    def fix_positions(self, table: Tensor) -> None:
        """Give the patches the positions `table` (h * w of `grid`, C), prefix tokens zeros, and freeze them.

        A ViT with only rotary positions is unchanged.
        """
        if self.model.pos_embed is None:
            return
        ahead = self.model.pos_embed.shape[1] - len(table)
        with torch.no_grad():
            self.model.pos_embed.copy_(functional.pad(table, (0, 0, ahead, 0)))
        self.model.pos_embed.requires_grad_(False)

    def layer_of(self, parameter_name: str) -> int:
        """Return the depth of a parameter of this module, as layer-wise learning-rate decay counts it (BEiT,
        https://arxiv.org/abs/2106.08254): 0 for patches, positions and prefix tokens, i + 1 for block i, depth + 1 for
        the others.
        """
        first, *rest = parameter_name.removeprefix('model.').split('.')
        if first == 'blocks':
            return int(rest[0]) + 1
        below = ('patch_embed', 'pos_embed', 'rope', 'norm_pre', 'cls_token', 'dist_token', 'reg_token')
        return 0 if first in below else self.depth + 1

    def sharding_units(self) -> list[nn.Module]:
        """Return the blocks; the bias of offsets, which is computed ahead of its block, is a unit of its own."""
        biases = [block.relative_bias for block in self.model.blocks if self.relative_bias]
        return [*biases, *self.model.blocks]

    def read_classifier(self) -> Classifier:
        """Return the classifier that came with the weights, read again from where they came.

        Raises ConfigError or CheckpointError where there is none.
        """
        return read_classifier(**self._source)

    def _insert(self, lora: Lora, *, recoverable: bool) -> None:
        lora.insert(self.model)
        for module in self.model.modules():
            if isinstance(module, eva.EvaAttention):
                module.qkv_bias_separate = True  # otherwise it reads the weight of the linear layer and skips LoRA
        if recoverable:
            self.omitted_weights = tuple(name for name, value in self.named_parameters() if not value.requires_grad)

    def _block(self, index: int) -> int:
        why = f'layers of a ViT with {self.depth} blocks count from 0 to {self.depth - 1}, or from the end, from -1'
        check(-self.depth <= index < self.depth, 'layer', index, why, 'change layer= or layers= of the adapter')
        return index % self.depth

    def _read(self, tokens: Tokens, request: LayerRequest) -> Tokens:
        tokens = whole(tokens)
        tokens = self.norm(tokens) if request.normed else tokens
        return tokens if self.amp is None else tokens._replace(x=tokens.x.float())  # autocast ends here

    def _prefix_tokens(self) -> Tensor | None:
        """Return the (1, P, C) class, distillation and register tokens."""
        parts = (getattr(self.model, name, None) for name in ('cls_token', 'dist_token', 'reg_token'))
        parts = [part for part in parts if part is not None]
        return torch.cat(parts, dim=1) if parts else None


def _check_modes(amp: str | None, frozen: bool, lora: Any, stem: str, pretrained: bool) -> None:
    why = "it is the autocast of a frozen ViT, 'bf16' or None; a ViT that trains follows the run's own setting"
    fix = "set frozen=True with amp='bf16', or remove amp and use --amp of the run"
    check(amp is None or (amp == 'bf16' and frozen), 'ViT.amp', amp, why, fix)
    why = 'a frozen ViT cannot learn by LoRA: gradients must pass through the blocks to reach the corrections'
    fix = 'remove frozen=True: LoRA freezes all other weights by itself'
    check(lora is None or not frozen, 'ViT.frozen', frozen, why, fix)
    why = 'published weights begin with a linear patch embedding; a convolutional stem has none and trains from scratch'
    fix = "write stem='patch', or stem='conv' with pretrained=False"
    check(stem == 'patch' or (stem == 'conv' and not pretrained), 'ViT.stem', stem, why, fix)


def _check_size(imgs: Tensor, valid: Tensor | None, patch: int) -> None:
    height, width = imgs.shape[-2:]
    if height % patch or width % patch:
        raise DataError(
            f'images of {height} x {width} pixels do not divide into patches of {patch} x {patch}',
            where='ViT.forward(imgs)',
            why='both sides must be multiples of the patch size',
            fix=f'pad them at the right and the bottom to a multiple of {patch} (Preprocessor(divisor={patch}) does)',
        )
    if valid is not None and valid.shape != (imgs.shape[0], height, width):
        raise ValueError(f'valid is {tuple(valid.shape)}; for these images it must be {(len(imgs), height, width)}')
