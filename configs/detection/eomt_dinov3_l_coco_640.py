"""EoMT for instances on DINOv3 ViT-L/16, COCO.

    python tools/train.py configs/detection/eomt_dinov3_l_coco_640.py

Aims at 45.9 mask AP (tue-mps/eomt, model zoo, DINOv3). The recipe is that of the DINOv2 leaf, but: AdamW 2e-4, no layer
decay in the last four blocks, warm-up 2000 and 3000 steps (configs/dinov3/coco/instance/eomt_large_640.yaml), and in
training rotations of coordinates rescaled by up to 2, and queries and values with biases, as in the DINOv3 of
transformers that the authors wrap.

Cost: about 2 days on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .eomt_dinov2_l_coco_640 import *

model.network.backbone.update(
    name='vit_large_patch16_dinov3_qkvb.lvd1689m', patch_size=None, timm_args=dict(rope_rescale_coords=2.0)
)
optim_wrapper.optimizer.update(lr=2e-4)
optim_wrapper.groups.update(full_blocks=4)
schedule.update(warmup_iters=2_000, backbone_warmup_iters=3_000)
