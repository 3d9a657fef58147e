"""Linear segmentation on a fine-tuned DINOv2 ViT-B run with patches of 16, ADE20K.

    python tools/train.py configs/semantic/linear_finetuned_dinov2_b_ade20k.py

Aims at 53.4 mIoU (tue-mps/benchmark-vfm-ss, issue 1; the same code reaches 45.8 with the encoder frozen). Recipe: layer
norm and a linear layer on the last layer without the encoder's final norm; AdamW 1e-4, encoder at a tenth of it with no
layer decay, weight decay 0.05 on every parameter, polynomial decay 0.9 with no warm-up, 40 000 steps of 16 crops
(configs/ade20k_linear_semantic.yaml, accumulate_grad_batches in main.py). Images are jittered in colour with a hue of
18 of 360 degrees, mirrored, resized to fit inside 0.5 ... 2.0 of 512 x 512, padded with black and cropped; crops
without labels are sampled again (datasets/transforms.py). Validation resizes the short side to 512, antialiased, and
averages evenly spaced windows of 512. Cross-entropy is averaged over labelled pixels (torch's ignore_index).

Differs from the source in: the norm before the linear layer is new, as in the first version of the code, not the
encoder's own; a crop without labels is sampled again with another scale; the average runs over the labelled pixels of
16 crops together, not of each crop.

Cost: about 12 hours on one 40 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k_jitter import *
    from .._base_.linear_frozen import *
    from .._base_.runtime import *


model.network.backbone.update(name='vit_base_patch14_dinov2.lvd142m', patch_size=16, frozen=False)
model.network.branches.sem.adapter.update(normed=False)
model.network.branches.sem.head.update(norm='layer')
model.tiler.update(stride=512, even=True)
optim_wrapper.optimizer.update(lr=1e-4, weight_decay=0.05)
optim_wrapper.groups.update(backbone_lr=0.1)
schedule = dict(max_iters=40_000, val_interval=5_000, decay='poly', power=0.9)
checkpoint.update(interval=5_000)
