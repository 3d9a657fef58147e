"""vitdense: dense prediction on plain Vision Transformers.

`vitdense.load(model_dir)` returns a predictor, `vitdense.finetune(folder)` trains a model, `vitdense.push_to_hub`
uploads one; everything else is imported from its own module.
"""

from __future__ import annotations

import getpass
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdense.checkpoints.hub_repos import push_to_hub
    from vitdense.commands.finetune import finetune
    from vitdense.inference.predictor import Predictor, load

__version__ = '0.1.0'
__all__ = ['Predictor', '__version__', 'finetune', 'load', 'push_to_hub']


_here = Path(__file__).resolve().parent
if not (_here / 'configs').is_dir():  # a checkout, where configs/ and tools/ lie beside the package
    __path__.append(str(_here.parent))


def _complete_environment() -> None:
    """Set USER and a home folder where the user has no entry in the system, as in `docker run --user 12345`.

    Without them yapf, which mmengine imports, and others raise errors or make folders that are called `~`. The home
    cannot exist, so that nothing is cached there.
    """
    if os.path.expanduser('~') == '~':
        os.environ['HOME'] = os.path.join(os.devnull, 'home')
    if not os.access(os.path.expanduser('~'), os.W_OK):
        logging.getLogger('matplotlib').setLevel(logging.ERROR)  # it warns of a cache that it cannot write
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ['USER'] = f'uid{os.getuid()}'


_complete_environment()


def __getattr__(name: str):
    if name in ('load', 'Predictor'):  # torch is imported when it is needed, so that `--help` is immediate
        from vitdense.inference import predictor as inference

        return getattr(inference, name)
    if name == 'push_to_hub':
        from vitdense.checkpoints.hub_repos import push_to_hub as push

        return push
    if name == 'finetune':
        from vitdense.commands.finetune import finetune as function

        return function
    raise AttributeError(f"module 'vitdense' has no attribute '{name}'")
