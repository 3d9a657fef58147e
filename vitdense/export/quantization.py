"""INT8 graphs by post-training quantization with NNCF, for OpenVINO."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.export.runtimes import missing, openvino_config

ROUNDS = 5


def quantize(path: Path, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Quantize the OpenVINO model at `path` in place and return the median seconds of a pass before and after.

    `images` are calibration inputs as the graph takes them. The ranges of activations are those that they have; layers
    that transformers are sensitive to stay in float32. Raises ResourceError where NNCF is not installed.
    """
    os.environ.setdefault('NNCF_CI', '1')  # else NNCF reports its use over the network
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise missing('nncf', error, '--int8') from error
    core = openvino.Core()
    model = core.read_model(path)
    before = core.compile_model(model, 'CPU', openvino_config())
    quantized = nncf.quantize(
        model, nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images)
    )
    after = core.compile_model(quantized, 'CPU', openvino_config())
    seconds = _seconds({'float32': before, 'int8': after}, images[0])
    del model, before  # the file is mapped into memory
    openvino.save_model(quantized, path.with_name('int8.xml'), compress_to_fp16=False)
    for suffix in ('.xml', '.bin'):
        path.with_name(f'int8{suffix}').replace(path.with_suffix(suffix))
    return seconds


def _seconds(models: dict[str, Any], image: np.ndarray) -> dict[str, float]:
    """Return the median seconds of a pass of compiled models, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS + 1):
        for name, compiled in models.items():
            start = time.perf_counter()
            compiled({0: image})
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
