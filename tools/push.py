"""Upload a model folder, or an exported one, with its model card to the Hugging Face Hub.

    vitdense push work_dirs/shapes/model OWNER/NAME
    vitdense push work_dirs/shapes/model OWNER/NAME --licence apache-2.0 --dataset OWNER/DATA --private

Log in once with `hf auth login`. The model is then loaded by vitdense.load('hf:OWNER/NAME'), and by its name wherever a
model folder is expected. Only data files are uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='push.py', description=__doc__)
    parser.add_argument('folder', metavar='FOLDER', help='a model folder, or the folder of a run')
    parser.add_argument('repo', metavar='OWNER/NAME', help='the repository; it is made where it is not there')
    parser.add_argument('--revision', metavar='B', help='branch to upload to (default: main)')
    parser.add_argument('--licence', metavar='ID', help='licence of the weights, an id of the Hub such as apache-2.0')
    parser.add_argument('--dataset', nargs='+', default=(), metavar='D', help='data that the model was trained on')
    parser.add_argument('--private', action='store_true', help='a new repository is private')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Upload as `argv` says, and print the address."""
    args = make_parser().parse_args(argv)
    from vitdense.checkpoints.hub_repos import push_to_hub

    options = {'revision': args.revision, 'licence': args.licence, 'datasets': args.dataset, 'private': args.private}
    print(push_to_hub(args.folder, args.repo, **options))


if __name__ == '__main__':
    run(main)
