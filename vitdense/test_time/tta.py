"""Test-time augmentation: average the outputs for several sizes of an image and its mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check
from vitdense.test_time.merged_objects import fuse_views, rescaled, unmirrored
from vitdense.test_time.sliding_window import Network, one_by_one, refuse_outputs
from vitdense.types import ClassOutputs, Instances, ObjectOutputs, Outputs, PixelOutputs

TINY = torch.finfo(torch.float32).tiny  # a probability of zero has no logarithm


class TestTimeAugmentation:
    """Average the softmax probabilities of an image at several `scales`, each with its mirror image if `flip`.

    Called as `tta(network, imgs, valid)` with a network (or a tiled one) `(imgs, valid) -> {name: Outputs}`. Scales
    are relative to `imgs`, rounded to multiples of `divisor` pixels. The output logits are the logarithms of
    the mean probabilities, of pixels at the size of `imgs`: their argmax is that of the probabilities. It holds one
    map of probabilities for the batch, and one more for a single image, at a time. Objects (`ObjectOutputs`) of all
    views are fused, see `fuse_views`. Images of different sizes in one batch are taken one by one, each without its
    padding.
    """

    __test__ = False  # pytest takes a class of this name for a test

    def __init__(self, scales: Sequence[float], *, flip: bool = True, divisor: int = 1) -> None:
        self.scales = tuple(scales)
        self.flip = flip
        self.divisor = divisor
        holds = bool(self.scales) and min(self.scales) > 0 and divisor >= 1
        why = 'scales are factors of the size of the image, one or more, above 0'
        check(holds, 'TestTimeAugmentation.scales', self.scales, why, 'write scales=(0.75, 1.0, 1.25)')

    @torch.no_grad()
    def __call__(self, network: Network, imgs: Tensor, valid: Tensor | None = None) -> dict[str, Outputs]:
        """Return the averaged outputs for `imgs (B, 3, H, W)`; `PixelOutputs.input_size` is (H, W). No gradients."""
        if valid is not None:
            return one_by_one(lambda row, img: self(network, img), imgs, valid, divisor=self.divisor)
        totals: dict[str, Tensor] = {}
        views: dict[str, list[list[Instances]]] = {}  # of each view those of all images
        for scale in self.scales:
            scaled = self._scaled(imgs, scale)
            for flipped in (False, True) if self.flip else (False,):
                outputs = network(scaled.flip(-1) if flipped else scaled, None)
                for name, output in outputs.items():
                    if isinstance(output, ObjectOutputs):
                        views.setdefault(name, []).append(_upright(output, scaled, imgs, flipped))
                    else:
                        totals[name] = _add(totals.get(name), name, output, imgs, flipped)
        number = len(self.scales) * (2 if self.flip else 1)
        fused = {
            name: ObjectOutputs(tuple(map(fuse_views, zip(*objects, strict=True)))) for name, objects in views.items()
        }
        averaged = {name: _outputs(total.div_(number), tuple(imgs.shape[-2:])) for name, total in totals.items()}
        return averaged | fused

    def _scaled(self, imgs: Tensor, scale: float) -> Tensor:
        input_size = tuple(imgs.shape[-2:])
        size = tuple(max(round(side * scale / self.divisor), 1) * self.divisor for side in input_size)
        if size == input_size:
            return imgs
        return functional.interpolate(imgs, size, mode='bilinear', align_corners=False, antialias=scale < 1)


def _add(total: Tensor | None, name: str, output: Outputs, imgs: Tensor, flipped: bool) -> Tensor:
    """Return `total` with the probabilities of one view added in place."""
    if isinstance(output, ClassOutputs):
        probs = output.logits.float().softmax(1)
        return probs if total is None else total.add_(probs)
    if not isinstance(output, PixelOutputs):
        refuse_outputs(name, output, where='model.tta', fix='test without --tta')
    if total is None:
        total = imgs.new_zeros(len(imgs), output.logits.shape[1], *imgs.shape[-2:], dtype=torch.float32)
    for image, logits in zip(total, output.logits, strict=True):  # one at a time: a full map is large
        logits = (logits.flip(-1) if flipped else logits)[None].float()
        full = functional.interpolate(logits, imgs.shape[-2:], mode='bilinear', align_corners=False)
        image.add_(full.softmax(1)[0])
    return total


def _upright(output: ObjectOutputs, scaled: Tensor, imgs: Tensor, flipped: bool) -> list[Instances]:
    """Return the objects of one view of every image in pixels of `imgs`."""
    size, input_size = tuple(scaled.shape[-2:]), tuple(imgs.shape[-2:])
    objects = (unmirrored(each, size[1]) if flipped else each for each in output.objects)
    return [rescaled(each, size, input_size) for each in objects]


def _outputs(probs: Tensor, input_size: tuple[int, int]) -> Outputs:
    logits = probs.clamp_(min=TINY).log_()
    return ClassOutputs(logits) if logits.ndim == 2 else PixelOutputs(logits, input_size)
