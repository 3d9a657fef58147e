"""The Vision Transformer, opened once: the only room that knows timm's insides.

Six verbs (embed, insert, keep, run, norm, fold) that networks of their own are written with, and one call that gives
the maps of any set of layers in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import eva
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vitdense.backbones.pretrained import create, read_classifier
from vitdense.backbones.tokens import Tokens, cut, insert, join_masks, keep, own_grids, spread, whole, without_padding
from vitdense.backbones.windows import Windows, draw_per_image, run_windows
from vitdense.errors import ConfigError, DataError
from vitdense.registry import build
from vitdense.types import Classifier, Features, LayerRequest

_REMEMBERED = 16  # tables of positions kept by a frozen ViT


class ViT(nn.Module):
    """A Vision Transformer of timm (families `VisionTransformer` and `Eva`) that answers with maps.

    `name` is timm's, with or without tag. `pretrained` is True (timm's hub), the path of a file, or False. Loading is
    strict; `partial_weights=True` takes what fits, and a list of words (`['ls1', 'ls2']`) allows only parameters named
    so to be absent from the file. `patch_size` other than the checkpoint's resamples the patch kernel
    (FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4) and leaves the table of positions as it is; `img_size`,
    a side or (H, W) in pixels, resamples that table to the grid of such a picture. Neither limits the pictures: any
    size that is a multiple of the patch runs, its positions resampled on the way.

    `drop_path` is the rate of stochastic depth in the last block, growing linearly from 0. `frozen` keeps weights,
    evaluation mode and the absence of a graph, whatever `train()` says; `amp='bf16'` then runs it under autocast.
    `checkpointing` recomputes blocks in the backward pass to save memory. `windows`, a `Windows` or its recipe, lets
    most blocks attend within windows. `timm_args` go to `timm.create_model`.

    Facts: `embed_dim`, `depth`, `patch_size`, `divisor` (sides of pictures must be multiples of it), `mean` and `std`
    of the checkpoint (RGB in [0, 1]), `num_prefix_tokens`, `has_cls`.

    Raises ConfigError for arguments that cannot be, CheckpointError for weights that do not fit or cannot be had.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | Path = False,
        partial_weights: bool | Sequence[str] = False,
        patch_size: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        drop_path: float = 0.0,
        frozen: bool = False,
        checkpointing: bool = False,
        amp: Literal['bf16'] | None = None,
        windows: Windows | dict | None = None,
        timm_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_amp(amp, frozen)
        self.model = create(
            name,
            pretrained=pretrained,
            partial_weights=partial_weights,
            patch_size=patch_size,
            img_size=(img_size, img_size) if isinstance(img_size, int) else img_size,
            drop_path=drop_path,
            timm_args=timm_args,
        )
        self._source = dict(name=name, pretrained=pretrained, timm_args=timm_args)
        self.frozen, self.checkpointing = frozen, checkpointing
        self.amp = torch.bfloat16 if amp == 'bf16' else None
        self.embed_dim: int = self.model.embed_dim
        self.depth = len(self.model.blocks)
        self.divisor = self.patch_size = int(self.model.patch_embed.patch_size[0])
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.has_cls = self.model.cls_token is not None
        self.mean, self.std = (tuple(self.model.pretrained_cfg[key]) for key in ('mean', 'std'))
        self._rotates = isinstance(self.model, eva.Eva)  # whose blocks take a rotation
        self._mixed = getattr(self.model, 'rope_mixed', False)  # a rotation of its own for each block
        self._tables: dict[tuple, Tensor] = {}
        self.windows: Windows | None = build(windows)
        self._windowed = self.windows.blocks(self.depth) if self.windows is not None else frozenset()
        for index in self._windowed:
            draw_per_image(self.model.blocks[index])
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> ViT:
        """Set training mode; a frozen ViT stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(
        self, imgs: Tensor, valid: Tensor | None = None, *, layers: Sequence[LayerRequest | tuple[int, bool]]
    ) -> Features:
        """Return the maps (and class tokens) of the requested layers, in that order, from one pass.

        `imgs` is (B, 3, H, W) float, normalised; `valid` as in `Batch`. Blocks behind the last requested one do not
        run. Where `valid` is given, each picture has the positions of its own grid, nobody attends to padding, and
        maps are zero in cells that are all padding: a padded batch answers as the single picture does.
        """
        requests = [LayerRequest(self._block(index), normed) for index, normed in layers]
        with ExitStack() as modes:
            if self.frozen:
                modes.enter_context(torch.no_grad())
            if self.amp is not None:
                modes.enter_context(torch.autocast(imgs.device.type, self.amp))
            tokens = self.embed(imgs, valid)
            seen: dict[LayerRequest, Tokens] = {}
            start = 0
            for stop in sorted({request.index + 1 for request in requests}):
                tokens = self._advance(tokens, start, stop)
                start = stop
                seen |= {request: self._read(tokens, request) for request in requests if request.index + 1 == stop}
        return Features(
            layers=tuple(without_padding(self.fold(seen[request]), tokens) for request in requests),
            cls=tuple(seen[request].x[:, 0] for request in requests) if self.has_cls else (),
            valid=valid,
            size=tuple(imgs.shape[-2:]),
        )

    def embed(self, imgs: Tensor, valid: Tensor | None = None) -> Tokens:
        """Cut pictures (B, 3, H, W) into patches and give them positions, each picture those of its own grid.

        Raises DataError when a side is not a multiple of the patch.
        """
        _check_size(imgs, valid, self.patch_size)
        x = self.model.patch_embed(imgs)  # (B, h, w, C)
        grid = (x.shape[1], x.shape[2])
        cells, grids = own_grids(valid, grid, self.patch_size)
        x = x.flatten(1, 2)  # (B, h * w, C)
        prefix = self._prefix_tokens()
        if self.model.pos_embed is not None:
            shared, positions = self._absolute_positions(grid, grids)
            x = x + positions
            prefix = prefix if shared is None else prefix + shared
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1) if self.num_prefix_tokens else x.contiguous()
        x = self.model.norm_pre(self.model.pos_drop(x))
        mask = None
        if cells is not None:
            mask = functional.pad(cells.flatten(1), (self.num_prefix_tokens, 0), value=True)[:, None, None]
        return Tokens(x, grid, self._rotations(grid, grids), mask, grids)

    def insert(self, tokens: Tokens, queries: Tensor) -> Tokens:
        """Insert `queries` (B, Q, C) behind the prefix tokens. They are seen by all and are not rotated."""
        return insert(tokens, queries, prefix=self.num_prefix_tokens)

    def keep(self, tokens: Tokens, rows: Tensor) -> Tokens:
        """Keep the patches `rows` (B, K) int64 of each picture, in that order, and all that stands before the patches.

        What is left can run and be normed; it is no map any more: its grid is (1, K). Raises ConfigError where blocks
        attend within windows.
        """
        if self._windowed:
            raise ConfigError(
                'a part of the patches cannot attend within windows',
                where='ViT(windows=...)',
                why='what is kept of a picture is a set of patches, not a map that windows could be cut from',
                fix='leave windows out: fewer patches cost less already',
            )
        return keep(tokens, rows, prefix=self.num_prefix_tokens, mixed=self._mixed)

    def run(
        self, tokens: Tokens, start: int = 0, stop: int | None = None, *, attn_mask: Tensor | None = None
    ) -> Tokens:
        """Run the blocks [start, stop). `attn_mask`, bool (True = may attend) or added to the scores, broadcasts to
        (B, heads, N, N); padding stays hidden. Windows are put together again behind the last block.

        Raises ConfigError for an `attn_mask` where blocks attend within windows.
        """
        stop = self.depth if stop is None else stop
        if attn_mask is not None and not self._windowed.isdisjoint(range(start, stop)):
            raise ConfigError(
                f'the blocks {start} to {stop - 1} run with an attention mask, but some attend within windows',
                where='ViT(windows=Windows(global_blocks=...))',
                why='a mask over all tokens has no meaning inside a window',
                fix=f'make them global: global_blocks that contain {start} ... {stop - 1}',
            )
        return whole(self._advance(tokens, start, stop, attn_mask))

    def _advance(self, tokens: Tokens, start: int, stop: int, attn_mask: Tensor | None = None) -> Tokens:
        """Run blocks; what windowed blocks leave stays cut, so that no reading in between changes what follows."""
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for index in range(start, stop):
            if index not in self._windowed:
                tokens = whole(tokens)
            elif tokens.layout is None:
                tokens = cut(tokens, self.windows)
            step, named = self._step(index, tokens, attn_mask)
            x = checkpoint(step, tokens.x, use_reentrant=False, **named) if recompute else step(tokens.x, **named)
            tokens = tokens._replace(x=x)
        return tokens

    def _step(self, index: int, tokens: Tokens, attn_mask: Tensor | None) -> tuple[Callable, dict[str, Any]]:
        """Return what runs block `index` on these tokens, and its named arguments."""
        block, layout = self.model.blocks[index], tokens.layout
        rope = tokens.rope[index] if self._mixed and tokens.rope is not None else tokens.rope
        if layout is None:
            named = {'attn_mask': join_masks(attn_mask, tokens.mask)}
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
        """The (h, w) of the table of positions; that of the usual picture, where there is no such table."""
        return tuple(self.model.patch_embed.grid_size)

    def fix_positions(self, table: Tensor) -> None:
        """Give the patches the positions `table` (h * w of `grid`, C), prefix tokens zeros, and never learn them.

        A ViT that only rotates has no such positions, and stays as it is.
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
        the rest.
        """
        first, *rest = parameter_name.removeprefix('model.').split('.')
        if first == 'blocks':
            return int(rest[0]) + 1
        below = ('patch_embed', 'pos_embed', 'rope', 'norm_pre', 'cls_token', 'dist_token', 'reg_token')
        return 0 if first in below else self.depth + 1

    def read_classifier(self) -> Classifier:
        """Return the classifier that came with the weights, read again from where they came.

        Raises ConfigError or CheckpointError where there is none.
        """
        return read_classifier(**self._source)

    def _block(self, index: int) -> int:
        if not -self.depth <= index < self.depth:
            raise ConfigError(
                f'layer {index} was asked of a ViT with {self.depth} blocks',
                where='layers=',
                why=f'layers count from 0 to {self.depth - 1}, or from the end, -1 to {-self.depth}',
                fix='ask for layers that exist: change layer= or layers= of the adapter',
            )
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

    def _absolute_positions(
        self, grid: tuple[int, int], grids: Sequence[tuple[int, int]] | None
    ) -> tuple[Tensor | None, Tensor]:
        """Return positions of the prefix (1, P, C), if they have any, and of the patches (1 or B, h * w, C)."""
        count = 0 if self.model.no_embed_class else self.num_prefix_tokens
        if grids is None:
            table = self._table('absolute', grid)  # (1, count + h * w, C)
            return table[:, :count] if count else None, table[:, count:]
        tables = {own: self._table('absolute', own) for own in set(grids)}
        shared = tables[grids[0]][:, :count] if count else None  # no grid changes it
        return shared, torch.stack([spread(tables[own][0, count:], own, grid) for own in grids])

    def _rotations(self, grid: tuple[int, int], grids: Sequence[tuple[int, int]] | None) -> Tensor | None:
        if getattr(self.model, 'rope', None) is None:
            return None
        if grids is None:
            return self._table('rotary', grid)
        tables = {own: self._table('rotary', own) for own in set(grids)}
        laid = [spread(tables[own], own, grid) for own in grids]
        return torch.stack(laid, dim=1) if self._mixed else torch.stack(laid)[:, None]

    def _table(self, kind: Literal['absolute', 'rotary'], grid: tuple[int, int]) -> Tensor:
        """Return the positions of one grid, remembered where nothing can change them."""
        source = self.model.pos_embed if kind == 'absolute' else next(self.model.rope.parameters(), None)
        anchor = self.model.patch_embed.proj.weight if source is None else source
        # weights that train change under us (an averaged copy swaps them in without a trace), and what inference mode
        # or an export made must not come back in training
        changes = source is not None and not self.frozen
        augmented = kind == 'rotary' and self.model.rope.training and getattr(self.model.rope, 'aug_active', False)
        if changes or augmented or anchor.is_inference() or torch.compiler.is_compiling():
            return self._make_table(kind, grid)
        key = (kind, grid, anchor.device, anchor.dtype, anchor.data_ptr(), anchor._version)
        if key not in self._tables:
            if len(self._tables) >= _REMEMBERED:
                del self._tables[next(iter(self._tables))]
            with torch.inference_mode(False), torch.no_grad():
                self._tables[key] = self._make_table(kind, grid)
        return self._tables[key]

    def _make_table(self, kind: Literal['absolute', 'rotary'], grid: tuple[int, int]) -> Tensor:
        if kind == 'rotary':
            return self.model.rope.get_embed(shape=grid)
        return resample_abs_pos_embed(
            self.model.pos_embed,
            new_size=grid,
            old_size=self.model.patch_embed.grid_size,
            num_prefix_tokens=0 if self.model.no_embed_class else self.num_prefix_tokens,
        )


def _check_amp(amp: str | None, frozen: bool) -> None:
    if amp not in (None, 'bf16') or (amp and not frozen):
        raise ConfigError(
            f'amp={amp!r} cannot be',
            where='ViT(amp=...)',
            why="it is the autocast of a frozen ViT, 'bf16' or None; a ViT that trains follows the run's own setting",
            fix="set frozen=True with amp='bf16', or remove amp and use --amp of the run",
        )


def _check_size(imgs: Tensor, valid: Tensor | None, patch: int) -> None:
    height, width = imgs.shape[-2:]
    if height % patch or width % patch:
        raise DataError(
            f'pictures of {height} x {width} pixels do not divide into patches of {patch} x {patch}',
            where='ViT.forward(imgs)',
            why='both sides must be multiples of the patch size',
            fix=f'pad them at the right and the bottom to a multiple of {patch} (Preprocessor(divisor={patch}) does)',
        )
    if valid is not None and valid.shape != (imgs.shape[0], height, width):
        raise ValueError(f'valid is {tuple(valid.shape)}; for these pictures it must be {(len(imgs), height, width)}')
