"""Linear segmentation on a frozen DINOv2 ViT-S/14, ADE20K.

    python tools/train.py configs/semantic/linear_dinov2_s_ade20k.py
    python tools/test.py configs/semantic/linear_dinov2_s_ade20k.py work_dirs/.../best.pth

Aims at 44.3 mIoU, single scale (DINOv2 paper, arXiv 2304.07193, table of linear semantic segmentation). Recipe: batch
norm and a 1x1 convolution on the last layer, AdamW 1e-3 with weight decay 1e-4 on everything, 1500 steps of warm-up,
linear decay, 40 000 steps of 16 crops, float32, cross-entropy averaged over all pixels, windows of 512 every 341 pixels
at test time (the mmsegmentation config beside the published heads, which notebooks/semantic_segmentation.ipynb reads).

Differs from the source in: images are padded to multiples of 14 at the right and the bottom, not around the centre,
and the padding is masked, as everywhere in this project, so that a padded batch gives the outputs of the single image.

Cost: about 3 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.linear_frozen import *
    from .._base_.runtime import *
    from .._base_.schedules.poly_160k import *

from vitdense.tasks.losses import CrossEntropy

model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
schedule.update(max_iters=40_000, val_interval=5_000)
checkpoint.update(interval=5_000)
amp = 'off'
