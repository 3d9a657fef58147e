"""ImageNet class names and evaluation crops from timm, which is imported when they are needed."""

from __future__ import annotations

from typing import NamedTuple

from vitdense.arguments import check
from vitdense.errors import did_you_mean


class Crop(NamedTuple):
    """Evaluation crop of a published checkpoint."""

    size: int  # pixels of a side
    crop_pct: float  # share of the short side inside the crop
    interpolation: str
    squash: bool  # both sides are resized to `size`, whatever the aspect


def imagenet_wordnet() -> dict[str, str]:
    """Return {WordNet id: synonyms} of the 1000 classes of ILSVRC 2012, in the order of every classifier's outputs."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo('imagenet-1k')
    return {wordnet_id: info.label_name_to_description(wordnet_id) for wordnet_id in info.label_names()}


def evaluation_crop(checkpoint: str) -> Crop:
    """Return the crop of timm's `pretrained_cfg`. Raises ConfigError for a name that timm does not have."""
    import timm
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(checkpoint)
    if cfg is None:
        known = timm.list_pretrained() if '.' in checkpoint else timm.list_models()
        why = f'timm {timm.__version__} has no such checkpoint{did_you_mean(checkpoint, known)}'
        fix = 'write the name of the backbone, or give size=, crop_pct= and interpolation='
        check(False, 'EvaluationCrop.checkpoint', checkpoint, why, fix)
    height, width = (cfg.test_input_size or cfg.input_size)[1:]
    square = height == width and cfg.crop_mode in ('center', 'squash')
    why = f"its evaluation is no square crop: {height} x {width} pixels, crop_mode='{cfg.crop_mode}'"
    check(square, 'EvaluationCrop.checkpoint', checkpoint, why, 'give size=, crop_pct= and interpolation= instead')
    return Crop(height, cfg.test_crop_pct or cfg.crop_pct, cfg.interpolation, cfg.crop_mode == 'squash')
