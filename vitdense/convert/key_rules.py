"""Rules that rename the tensors of published checkpoints, applied one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vitdense.pretrained.foreign_names import BLOCK_RULES, Rule

_MLP: tuple[Rule, ...] = (
    (r'(blocks\.\d+)\.mlp\.up_proj\.', r'\1.mlp.fc1.'),
    (r'(blocks\.\d+)\.mlp\.down_proj\.', r'\1.mlp.fc2.'),
)
_EVA_LAYER_SCALE: Rule = (r'(blocks\.\d+)\.ls(\d)\.gamma$', r'\1.gamma_\2')  # names of timm's Eva

UPERNET: tuple[Rule, ...] = (  # mmsegmentation's UPerHead and FCNHead -> UPerNetHead of the branch 'sem'
    (r'^decode_head\.conv_seg\.', 'heads.sem.classifier.'),
    (r'^decode_head\.psp_modules\.(\d+)\.1\.', r'heads.sem.pooling.projections.\1.'),
    (r'^decode_head\.bottleneck\.', 'heads.sem.pooling.bottleneck.'),
    (r'^decode_head\.lateral_convs\.', 'heads.sem.laterals.'),
    (r'^decode_head\.fpn_convs\.', 'heads.sem.smooths.'),
    (r'^decode_head\.fpn_bottleneck\.', 'heads.sem.fuse.'),
    (r'^auxiliary_head\.convs\.0\.', 'heads.sem.aux.0.'),
    (r'^auxiliary_head\.conv_seg\.', 'heads.sem.aux.2.'),
    (r'^(heads\..*)\.bn\.', r'\1.norm.'),
)
VIT_ADAPTER: tuple[Rule, ...] = (
    (r'^backbone\.(patch_embed|pos_embed|blocks)\b', r'backbone.vit.model.\1'),
    (r'^(backbone\.vit\.model\.blocks\.\d+)\.gamma(\d)$', r'\1.ls\2.gamma'),
    (r'^backbone\.(level_embed$|up\.)', r'backbone.pyramid.\1'),
    *((rf'^backbone\.norm{number + 1}\.', f'backbone.pyramid.norms.{number}.') for number in range(4)),
    *((rf'^backbone\.spm\.fc{number + 1}\.', f'backbone.pyramid.prior.project.{number}.') for number in range(4)),
    *(
        (rf'^backbone\.spm\.stem\.{3 * number + step}\.', f'backbone.pyramid.prior.stem.{number}.{part}.')
        for number in (0, 1, 2)
        for step, part in enumerate(('conv', 'norm'))
    ),
    *(
        (rf'^backbone\.spm\.conv{number}\.{step}\.', f'backbone.pyramid.prior.stages.{number - 2}.{part}.')
        for number in (2, 3, 4)
        for step, part in enumerate(('conv', 'norm'))
    ),
    (r'^backbone\.interactions\.(\d+)\.injector\.', r'backbone.injectors.\1.'),
    (r'^backbone\.interactions\.(\d+)\.extractor\.', r'backbone.pyramid.extractors.\1.0.'),
    (
        r'^backbone\.interactions\.(\d+)\.extra_extractors\.(\d+)\.',
        lambda match: f'backbone.pyramid.extractors.{match[1]}.{int(match[2]) + 1}.',
    ),
    (r'\.ffn\.dwconv\.dwconv\.', '.ffn.dwconv.'),
    *UPERNET,
)
DINOV2_LINEAR: tuple[Rule, ...] = (  # the backbone's own file, and that of the head
    (r'^(cls_token|pos_embed|patch_embed|blocks|norm|register_tokens|mask_token)\b', r'backbone.model.\1'),
    (r'\bregister_tokens$', 'reg_token'),
    (r'^decode_head\.conv_seg\.', 'heads.sem.classifier.'),
    (r'^decode_head\.bn\.', 'heads.sem.norm.'),
)
MAE_UPERNET: tuple[Rule, ...] = (  # mmsegmentation's MAE, whose blocks are those of its BEiT
    (r'^backbone\.patch_embed\.projection\.', 'backbone.model.patch_embed.proj.'),
    (r'^backbone\.(cls_token|pos_embed)$', r'backbone.model.\1'),
    (r'^backbone\.layers\.(\d+)\.', r'backbone.model.blocks.\1.'),
    (r'\.ln(\d)\.', r'.norm\1.'),
    (r'\.gamma_(\d)$', r'.ls\1.gamma'),
    (r'\.attn\.relative_position_bias_table$', '.relative_bias.table'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^neck\.upsample_4x\.', 'adapters.sem.stages.0.'),
    (r'^neck\.upsample_2x\.0\.', 'adapters.sem.stages.1.'),
    *UPERNET,
)
EOMT: tuple[Rule, ...] = (  # the authors' names, and those of transformers (Eomt, EomtDinov3)
    (r'^network\.', ''),
    (r'^encoder\.backbone\.', 'backbone.model.'),
    (r'^query\.', 'q.'),
    (r'^class_predictor\.', 'class_head.'),
    *((rf'^mask_head\.fc{number + 1}\.', f'mask_head.{2 * number}.') for number in range(3)),
    (r'^upscale_block\.block\.', 'upscale.'),
    (r'^(upscale\..*)\.layernorm2d\.', r'\1.norm.'),
    (r'^layernorm\.', 'backbone.model.norm.'),
    (r'^layers\.', 'backbone.model.blocks.'),
    (r'^embeddings\.cls_token$', 'backbone.model.cls_token'),
    (r'^embeddings\.register_tokens$', 'backbone.model.reg_token'),
    (r'^embeddings\.position_embeddings(\.weight)?$', 'backbone.model.pos_embed'),
    (r'^embeddings\.patch_embeddings\.(projection\.)?', 'backbone.model.patch_embed.proj.'),
    *BLOCK_RULES,
    *_MLP,
)
EOMT_DINOV3 = (  # the authors wrap transformers' DINOv3 and call its embeddings `patch_embed`
    *EOMT,
    (r'^backbone\.model\.patch_embed\.cls_token$', 'backbone.model.cls_token'),
    (r'^backbone\.model\.patch_embed\.register_tokens$', 'backbone.model.reg_token'),
    (r'^backbone\.model\.patch_embed\.patch_embeddings\.', 'backbone.model.patch_embed.proj.'),
    _EVA_LAYER_SCALE,
)
DINOV3: tuple[Rule, ...] = (  # the backbone by itself, as transformers calls it (DINOv3ViTModel)
    (r'^(.*\.)?embeddings\.(cls_token|mask_token)$', r'\2'),
    (r'^(.*\.)?embeddings\.register_tokens$', 'reg_token'),
    (r'^(.*\.)?embeddings\.patch_embeddings\.', 'patch_embed.proj.'),
    (r'^(.*\.)?layer\.(\d+)\.', r'blocks.\2.'),
    *BLOCK_RULES,
    *_MLP,
    _EVA_LAYER_SCALE,
)
_PROJECTOR: tuple[Rule, ...] = (
    (r'^backbone\.0\.projector\.stages_sampling\.(\d+)\.(\d+)\.(\d+)\.', r'STAGE\1.samplers.\2.layers.\3.'),
    (r'^backbone\.0\.projector\.stages\.(\d+)\.1\.', r'STAGE\1.norm.'),
    (r'^backbone\.0\.projector\.stages\.(\d+)\.0\.m\.(\d+)\.cv(\d)\.', r'STAGE\1.mix.blocks.\2.conv\3.'),
    (r'^backbone\.0\.projector\.stages\.(\d+)\.0\.cv(\d)\.', r'STAGE\1.mix.conv\2.'),
    (r'^backbone\.projector\.scale_layers\.(\d+)\.', r'STAGE\1.'),
    (r'^backbone\.projector\.', 'STAGE0.'),
    (r'^(STAGE\d+)\.layer_norm\.', r'\1.norm.'),
    (r'^(STAGE\d+)\.projector_layer\.', r'\1.mix.'),
    (r'^(STAGE\d+)\.sampling_layers\.', r'\1.samplers.'),
    (r'^(STAGE\d+\.mix)\.bottlenecks\.', r'\1.blocks.'),
    (
        r'^(STAGE\d+\.mix\.blocks\.\d+)\.conv(\d)\.',
        lambda match: f'{match[1]}.{int(match[2]) - 1}.',
    ),
    (r'^(STAGE\d+\..*)\.bn\.', r'\1.norm.'),
    (r'^STAGE(\d+)\.', r'adapters.det.stages.\1.'),
)
_DECODER: tuple[Rule, ...] = (
    (r'^transformer\.', ''),
    (r'^(decoder\.layers\.\d+)\.(norm1|self_attn_layer_norm)\.', r'\1.add1.norm.'),
    (r'^(decoder\.layers\.\d+)\.(norm2|cross_attn_layer_norm)\.', r'\1.add2.norm.'),
    (r'^(decoder\.layers\.\d+)\.(norm3|layer_norm)\.', r'\1.feed_forward.add.norm.'),
    (r'^(decoder\.layers\.\d+)\.(linear|mlp\.fc)(\d)\.', r'\1.feed_forward.linear\3.'),
    (r'^(decoder\.layers\.\d+\.self_attn)\.o_proj\.', r'\1.out_proj.'),
    (r'^decoder\.layernorm\.', 'decoder.norm.'),
    (r'^decoder\.ref_point_head\.layers\.', 'decoder.position_encoder.linears.'),
    (r'^(refpoint_embed|reference_point_embed)\.weight$', 'queries.box_deltas'),
    (r'^query_feat\.weight$', 'queries.content'),
    (r'^enc_output\.(\d+)\.', r'queries.transforms.\1.0.'),
    (r'^enc_output_norm\.(\d+)\.', r'queries.transforms.\1.1.'),
    (r'^enc_out_class_embed\.', 'queries.class_predictors.'),
    (r'^enc_out_bbox_embed\.(\d+)\.layers\.', r'queries.box_predictors.\1.linears.'),
    (r'^class_embed\.', 'decoder.class_predictors.0.'),
    (r'^bbox_embed\.layers\.', 'decoder.box_predictors.0.linears.'),
    (r'^(decoder|queries)\.', r'heads.det.\1.'),
)
RF_DETR: tuple[Rule, ...] = (  # the authors' names, and those of transformers
    (r'^model\.', ''),
    (r'^_orig_mod\.', ''),  # of torch.compile
    (r'^backbone\.(0\.encoder\.encoder|backbone)\.', 'backbone.model.'),
    (r'^backbone\.model\.embeddings\.(cls_token|mask_token)$', r'backbone.model.\1'),
    (r'^backbone\.model\.embeddings\.register_tokens$', 'backbone.model.reg_token'),
    (r'^backbone\.model\.embeddings\.position_embeddings$', 'backbone.model.pos_embed'),
    (r'^backbone\.model\.embeddings\.patch_embeddings\.projection\.', 'backbone.model.patch_embed.proj.'),
    (r'^backbone\.model\.encoder\.layer\.', 'backbone.model.blocks.'),
    (r'^backbone\.model\.layernorm\.', 'backbone.model.norm.'),
    *BLOCK_RULES,
    *_PROJECTOR,
    *_DECODER,
)
LW_DETR: tuple[Rule, ...] = (  # the authors' names, and those of transformers
    (r'^model\.', ''),
    (r'^backbone\.0\.encoder\.', 'backbone.model.'),
    (r'^backbone\.backbone\.embeddings\.position_embeddings$', 'backbone.model.pos_embed'),
    (r'^backbone\.backbone\.embeddings\.projection\.', 'backbone.model.patch_embed.proj.'),
    (r'^backbone\.backbone\.encoder\.layer\.', 'backbone.model.blocks.'),
    *BLOCK_RULES,
    (r'(blocks\.\d+)\.intermediate\.', r'\1.mlp.'),
    (r'(blocks\.\d+)\.gamma_(\d)$', r'\1.ls\2.gamma'),
    *_PROJECTOR,
    *_DECODER,
)


class CheckpointFamily(NamedTuple):
    """A family of published checkpoints."""

    name: str
    source: str  # where the files are
    licence: str  # of the weights
    rules: Sequence[Rule]  # applied one after another to every name
    free: bool = True  # whether the licence is known and unrestricted
    evidence: str = ''  # where the licence is stated
    unused: Sequence[str] = ()  # patterns of tensor names that predictions do not depend on
    coco: bool = False  # classifiers may have a row for each of COCO's category ids
    classifier: str = 'heads.sem.classifier.bias'  # our name of a tensor with one row per class
    other_rows: int = 0  # rows of it behind those of the classes
    base: str | None = None  # checkpoints may be differences: from which backbone
    note: str = ''  # differences of predictions from the original code
