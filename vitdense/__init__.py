"""vitdense: dense prediction on plain Vision Transformers.

`vitdense.load(model_dir)` returns a predictor; everything else is imported from its own module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdense.inference import Predictor, load

__version__ = '0.1.0'
__all__ = ['Predictor', '__version__', 'load']


def __getattr__(name: str):
    if name in ('load', 'Predictor'):  # torch is imported when it is needed, so that `--help` is immediate
        from vitdense import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'vitdense' has no attribute '{name}'")
