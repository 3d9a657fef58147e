"""torch.compile on the network: in place, tried before anything depends on it, and with its errors explained."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vitdense.errors import ResourceError
from vitdense.model import DenseModel

logger = logging.getLogger('vitdense')
LIMIT = 64  # compiled kinds of one network


def compile_network(model: DenseModel, device: torch.device, *, backend: str | Callable = 'inductor') -> None:
    """Let `model.network` be compiled when it first runs, and again for other kinds of input.

    Those are training and evaluation, padded batches, other sizes, and in joint training other branches: `LIMIT` of
    them, torch's own being 8, after which the network runs as it is.

    Names of weights, checkpoints and the outputs of the network stay as they are; tasks, losses and preprocessing are
    not compiled. A tiny function is compiled at once on `device`. Raises ResourceError where that fails.
    """
    start = time.perf_counter()
    with explained():
        torch.compile(_probe, backend=backend)(torch.ones(8, device=device))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, LIMIT)
    model.network.compile(backend=backend)
    logger.info(
        'the network is compiled (the compiler took %.1f s): the first step is slow, and so is the first of a '
        'new image size',
        time.perf_counter() - start,
    )


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2 + 1


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of torch's compiler into ResourceError; all others pass."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        missing = [line for line in lines if 'compiler' in line.lower() or 'triton' in line.lower()]
        raise ResourceError(
            'torch.compile failed',
            where='--compile',
            why=(missing or lines)[0][:300],
            fix='leave --compile out; or install what it needs: a C++ compiler (g++, with the headers of Python) for '
            'the CPU, triton for a GPU\nVITDENSE_DEBUG=1 shows all of the message',
        ) from error
