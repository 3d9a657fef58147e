"""The command `vitdense train|test|demo ...`: the same code as tools/*.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import vitdense
from vitdense.commands.parser import run
from vitdense.errors import ConfigError, did_you_mean

TOOLS = {
    'finetune': 'train on a folder of labelled images, without a config',
    'train': 'train a model',
    'test': 'evaluate a checkpoint',
    'demo': 'run a model on images and video',
    'serve': 'show predictions on a page and serve them as JSON',
    'push': 'upload a model folder to the Hugging Face Hub',
    'models': 'list published models that can be used by name',
    'merge-heads': 'combine heads that share a backbone',
    'evaluate': 'score saved predictions, without a model',
    'benchmark': 'measure parameters, FLOPs, time and memory',
    'import-weights': 'convert published weights into a model folder',
    'export': 'write a model as one graph, for onnxruntime or OpenVINO',
    'check-data': 'report what is wrong with a data set',
    'shards': 'write a data set as tar shards',
    'probe': 'compare backbones by nearest neighbours and linear heads',
    'replay-nan': 'repeat a training step whose numbers were not finite',
    'visualize-features': 'show features and attention of a ViT as images',
}
KNOWN_AS = {
    'train': ('fit',),
    'finetune': ('fine-tune',),
    'test': ('val', 'validate', 'eval'),
    'demo': ('predict', 'infer', 'inference', 'detect', 'segment', 'classify'),
    'merge-heads': ('merge',),
    'benchmark': ('profile', 'speed', 'flops'),
    'import-weights': ('import', 'convert'),
    'check-data': ('check', 'validate-data', 'analyze'),
    'models': ('list', 'zoo'),
    'push': ('upload',),
    'visualize-features': ('visualize', 'features', 'pca'),
}  # names of other programs
USAGE = 'usage: vitdense TOOL ...\n\n' + ''.join(f'  {name:20}{what}\n' for name, what in TOOLS.items())


def dispatch(argv: Sequence[str] | None) -> int | None:
    """Run the tool that the first argument names with the other arguments."""
    words = list(argv or ())
    if not words or words[0] in ('-h', '--help'):
        print(f'{USAGE}\nvitdense TOOL --help lists its options.')
        return None
    if words[0] == '--version':
        print(vitdense.__version__)
        return None
    words[0] = words[0].removesuffix('.py').replace('_', '-')
    meant = next((ours for ours, others in KNOWN_AS.items() if words[0] in others), words[0])
    if words[0] not in TOOLS:
        raise ConfigError(
            f"vitdense has no tool '{words[0]}'{did_you_mean(meant, TOOLS, cutoff=0.7)}",
            where=f'vitdense {words[0]}',
            why=f'the tools are {", ".join(TOOLS)}',
            fix='see vitdense --help',
        )
    return importlib.import_module(f'vitdense.tools.{words[0].replace("-", "_")}').main(words[1:])


def main() -> None:
    """Run the command line and exit."""
    run(dispatch, sys.argv[1:])


if __name__ == '__main__':
    main()
