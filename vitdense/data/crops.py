"""The crop with which classifiers are evaluated."""

from __future__ import annotations

import math

from torchvision.transforms import v2

from vitdense.data.published import Crop, evaluation_crop
from vitdense.errors import ConfigError
from vitdense.types import Sample


class EvaluationCrop:
    """Resize the short side to `size / crop_pct` pixels, and cut the middle `size` x `size` out.

    `checkpoint`, a name of timm with or without tag, gives what its `pretrained_cfg` says; `size`, `crop_pct` (in
    (0, 1]) and `interpolation` ('bilinear', 'bicubic') replace parts of it. Without a checkpoint they are 224, 0.875
    and 'bicubic'. What lies outside is not seen: this is for answers about whole pictures.

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
        given = dict(size=size, crop_pct=crop_pct, interpolation=interpolation)
        crop = published._replace(**{key: value for key, value in given.items() if value is not None})
        if crop.interpolation not in ('bilinear', 'bicubic') or not 0 < crop.crop_pct <= 1 or crop.size < 1:
            raise ConfigError(
                f'size={crop.size}, crop_pct={crop.crop_pct}, interpolation={crop.interpolation!r} is no crop',
                where='EvaluationCrop',
                why="a side has pixels, crop_pct is a share in (0, 1], and the interpolation 'bilinear' or 'bicubic'",
                fix="write for example size=224, crop_pct=0.9, interpolation='bicubic'",
            )
        self.crop = crop
        self.size = crop.size
        short = math.floor(crop.size / crop.crop_pct)
        resize = v2.Resize(
            [short, short] if crop.squash else [short], v2.InterpolationMode(crop.interpolation), antialias=True
        )
        self._steps = v2.Compose([resize, v2.CenterCrop(crop.size)])

    def __call__(self, sample: Sample) -> Sample:
        return self._steps(sample)

    def __repr__(self) -> str:
        return f'EvaluationCrop({self.crop})'
