"""Resize and centre crop for the evaluation of classifiers."""

from __future__ import annotations

import math

from torchvision.transforms import v2

from vitdense.data.timm_info import Crop, evaluation_crop
from vitdense.data.transforms import geometry
from vitdense.errors import ConfigError
from vitdense.types import Sample

LONGEST = 2**14  # pixels of the side that is resized to: larger ones come of a crop_pct near 0
LARGEST = 2**25  # pixels of the resized image; of a larger one only the middle is resized
TRIED = 64  # sides of the middle to choose from
MARGIN = 4  # pixels of the smaller of both images; a bicubic filter reaches 2 to either side


class EvaluationCrop:
    """Resize the short side to `size / crop_pct` pixels, and cut the middle `size` x `size` out.

    `checkpoint`, a name of timm with or without tag, gives the values of its `pretrained_cfg`; `size`, `crop_pct` (in
    (0, 1]) and `interpolation` ('bilinear', 'bicubic') replace parts of it. Without a checkpoint they are 224, 0.875
    and 'bicubic'. The rest of the image is cut off.

    Raises ConfigError for values that cannot be, and for checkpoints that are evaluated in another way.
    """

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        size: int | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
    ) -> None:
        published = evaluation_crop(checkpoint) if checkpoint else Crop(224, 0.875, 'bicubic', False)
        overrides = dict(size=size, crop_pct=crop_pct, interpolation=interpolation)
        crop = published._replace(**{key: value for key, value in overrides.items() if value is not None})
        possible = crop.size >= 1 and crop.size / LONGEST <= crop.crop_pct <= 1
        if crop.interpolation not in ('bilinear', 'bicubic') or not possible:
            raise ConfigError(
                f'size={crop.size}, crop_pct={crop.crop_pct}, interpolation={crop.interpolation!r} is no crop',
                where='EvaluationCrop',
                why=f'a side has pixels, crop_pct is a share in (0, 1], size / crop_pct at most {LONGEST}, and the '
                "interpolation 'bilinear' or 'bicubic'",
                fix="write for example size=224, crop_pct=0.9, interpolation='bicubic'",
            )
        self.crop = crop
        self.size = crop.size
        self.short = short = math.floor(crop.size / crop.crop_pct)
        resize = v2.Resize(
            [short, short] if crop.squash else [short], v2.InterpolationMode(crop.interpolation), antialias=True
        )
        self._steps = v2.Compose([resize, v2.CenterCrop(crop.size)])

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.img.shape[-2:]
        resized = max(height, width) / min(height, width) * self.short**2
        narrow = resized > LARGEST and not self.crop.squash
        return self._steps(self._middle(sample) if narrow else sample)

    def _middle(self, sample: Sample) -> Sample:
        """Return the middle of a narrow image, with all that the crop will show of it: it would grow too large.

        The cut has the middle of the image in its own middle, and a margin for the resize's filter.
        """
        height, width = sample.img.shape[-2:]
        shortest = min(height, width)
        scale = self.short / shortest
        needed = math.ceil(self.size / scale) + 2 * math.ceil(MARGIN * max(1, 1 / scale))
        rows, columns = (_cut_side(side, needed, self.short, shortest) for side in (height, width))
        return geometry.crop(sample, (height - rows) // 2, (width - columns) // 2, rows, columns)

    def __repr__(self) -> str:
        return f'EvaluationCrop({self.crop})'


def _cut_side(side: int, needed: int, short: int, shortest: int) -> int:
    """Return the part of a `side` to keep, at least `needed` pixels, so that its middle is resized as before.

    Both what is cut off and what the resize by `short / shortest` adds lie evenly around the middle, and the resized
    side is nearly a whole number of pixels.
    """
    if side <= needed + 2 * TRIED:
        return side
    kept = range(needed + (side - needed) % 2, needed + 2 * TRIED, 2)
    whole = side * short // shortest
    return min(kept, key=lambda n: ((n * short // shortest - whole) % 2, n * short % shortest))
