"""EoMT for instances on DINOv2 ViT-L with registers run with patches of 16, COCO.

    python tools/train.py configs/detection/eomt_dinov2_l_coco_640.py

Aims at 45.2 mask AP (tue-mps/eomt, model zoo, DINOv2). Recipe (tue-mps/eomt; Kerssies et al. 2025, arXiv 2503.19108):
200 queries in the last four blocks; AdamW 1e-4 with layer decay 0.8 from the last block on, weight decay 0.05 on every
parameter, gradients clipped at 0.01, polynomial decay 0.9 over 12 epochs of 16 images; queries and heads warm up for
500 steps while the ViT has a rate of 0, then the ViT for 1000 (configs/dinov2/coco/instance/eomt_large_640.yaml,
training/lightning_module.py, main.py). Large-scale jitter 0.1 ... 2.0 at 640, sampled again while no object is left
(datasets/transforms.py); masked attention falls to nothing block after block between 1/6 and 5/6 of the run. Validation
images are resized to fit inside 640 x 640 and padded with black to it, the image at the upper left; masks are cut to
the image before they are resized. 100 detections.

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

model.network.backbone.update(img_size=640)
model.network.update(num_queries=200, name='det')
model.tasks = dict(det=dict(type=InstanceTask, losses=dict(type=MaskLoss), top_k=100))
model.tiler = None
schedule = dict(
    max_iters=88_692, val_interval=7_391, warmup_iters=500, backbone_warmup_iters=1_000, decay='poly', power=0.9
)
custom_hooks = [dict(type=MaskAnnealingHook)]
checkpoint.update(interval=7_391, best='det/segm/AP')
