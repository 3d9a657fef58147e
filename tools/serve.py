"""Serve a model: a page to look at predictions, and a JSON endpoint.

    vitdense serve work_dirs/shapes
    curl --data-binary @photo.jpg http://127.0.0.1:8000/api/image

The page is at http://127.0.0.1:8000: drop an image or a short video on it. /openapi.json describes the endpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vitdense.commands.parser import Parser, count, positive, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='serve.py', description=__doc__)
    parser.add_argument('model', metavar='MODEL', help='a model folder, an exported one, or the folder of a run')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (%(default)s: this machine only)')
    parser.add_argument('--port', type=count, default=8000, help='(%(default)s)')
    parser.add_argument('--batch', type=positive, default=8, metavar='N', help='images in one pass (%(default)s)')
    parser.add_argument(
        '--max-waiting', type=positive, default=64, metavar='N', help='images that may wait, else 429 (%(default)s)'
    )
    parser.add_shared('--device', '--amp', '--trust-checkpoint')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve as `argv` says, until the process is ended."""
    args = make_parser().parse_args(argv)
    print(f'loading {args.model} ...', file=sys.stderr, flush=True)
    try:
        import uvicorn

        from vitdense.serving.app import RequestLimits, create_app
    except ImportError as error:
        from vitdense.errors import ResourceError

        raise ResourceError(
            'the packages of the server are not installed', where='vitdense serve', why=str(error),
            fix="pip install 'vitdense[web]'",
        ) from error  # fmt: skip
    from vitdense.inference.predictor import load

    options = {key: value for key, value in (('device', args.device), ('amp', args.amp)) if value is not None}
    predictor = load(args.model, batch_size=args.batch, **options)
    hosts = ['127.0.0.1', 'localhost'] if args.host in ('127.0.0.1', 'localhost') else ['*']
    name = '/'.join(Path(args.model).parts[-2:])
    app = create_app(predictor, name=name, limits=RequestLimits(waiting=args.max_waiting), hosts=hosts)
    predictor.warm_up()
    print(f'http://{args.host}:{args.port}', file=sys.stderr)
    uvicorn.run(app, host=args.host, port=args.port, log_level='warning')


if __name__ == '__main__':
    run(main)
