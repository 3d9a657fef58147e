"""EoMT for instances on DINOv3 ViT-L/16, COCO.

    python tools/train.py configs/detection/eomt_dinov3_l_coco_640.py

Aims at 45.9 mask AP (tue-mps/eomt, model zoo, DINOv3). The recipe is that of the DINOv2 config, but: AdamW 2e-4, no
layer decay in the last four blocks, warm-up 2000 and 3000 steps (configs/dinov3/coco/instance/eomt_large_640.yaml), and
in training rotations of coordinates rescaled by up to 2, and queries and values with biases, as in the DINOv3 of
transformers that the authors wrap.

Cost: about 2 days on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_masks import *
    from .._base_.eomt import *
    from .._base_.runtime import *

from vitdense.tasks.mask_classification import InstanceTask
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.train.hooks.mask_annealing import MaskAnnealingHook

model.network.backbone.update(
    name='vit_large_patch16_dinov3_qkvb.lvd1689m',
    patch_size=None,
    img_size=640,
    timm_args=dict(rope_rescale_coords=2.0),
)
model.network.update(num_queries=200, name='det')
model.tasks = dict(det=dict(type=InstanceTask, losses=dict(type=MaskLoss), top_k=100))
model.tiler = None
optim_wrapper.optimizer.update(lr=2e-4)
optim_wrapper.groups.update(full_blocks=4)
schedule = dict(
    max_iters=88_692, val_interval=7_391, warmup_iters=2_000, backbone_warmup_iters=3_000, decay='poly', power=0.9
)
custom_hooks = [dict(type=MaskAnnealingHook)]
checkpoint.update(interval=7_391, best='det/segm/AP')
