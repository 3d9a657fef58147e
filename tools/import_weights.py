"""Convert published weights of the same architectures into a model folder.

    python tools/import_weights.py dinov2-linear dinov2_vits14_pretrain.pth dinov2_vits14_ade20k_linear_head.pth \\
        --config configs/semantic/linear_dinov2_s_ade20k.py --out models/dinov2_s_ade20k
    python tools/import_weights.py rf-detr output/checkpoint_best_total.pth --out models/mine
    python tools/import_weights.py lw-detr my_lw_detr/ --out models/mine
    python tools/import_weights.py eomt-dinov3 pytorch_model.bin --base dinov3_vitl16/model.safetensors \\
        --config configs/semantic/eomt_dinov3_l_ade20k.py --out models/eomt_dinov3_l --accept-licence

The second line reads what rfdetr trained, the third a folder of transformers (config.json, model.safetensors): class
names and image size are those of the checkpoint. CONFIG is a config of the same architecture; without it, the one of
ours whose network has the tensors of the checkpoint is taken. Every tensor must match: missing and unused tensors are
listed, and nothing is written. Source and licence are printed, and kept in the folder; weights under restricted
licences need --accept-licence. Then: python tools/demo.py IMAGE --model DIR
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='import_weights.py', description=__doc__)
    parser.add_argument(
        'family', metavar='FAMILY', help='dinov2-linear, mae-upernet, vit-adapter, eomt, eomt-dinov3, rf-detr, lw-detr'
    )
    parser.add_argument(
        'files', metavar='FILE', nargs='+', help='the checkpoint or folder, or its parts: backbone and head'
    )
    parser.add_argument('--config', metavar='C', help='our config of the same architecture (default: found by tensors)')
    parser.add_argument('--out', metavar='DIR', required=True, help='the model folder to write')
    parser.add_argument(
        '--base', metavar='FILE', help='the pretrained backbone, where the files are differences from it'
    )
    parser.add_shared('--num-classes', '--cfg-options', '--accept-licence', '--trust-checkpoint')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Import as `argv` says."""
    args = make_parser().parse_args(argv)
    from vitdense.config.load import load_config
    from vitdense.convert import import_weights as importing
    from vitdense.reporting.console import console, start_logging

    start_logging(None)
    published = importing.find_family(args.family)
    for name, value in (
        ('source', published.source),
        ('licence', published.licence),
        ('stated in', published.evidence),
    ):
        console().print(f'{name}: {value or "unknown"}')
    coverage = importing.import_weights(
        args.family,
        args.files,
        load_config(args.config, args.cfg_options or ()) if args.config else None,
        args.out,
        num_classes=args.num_classes,
        accept_licence=args.accept_licence,
        base=args.base,
        options=args.cfg_options or (),
    )
    console().print(f'{coverage}; the model is in {args.out}/')


if __name__ == '__main__':
    run(main)
