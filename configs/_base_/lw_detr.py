"""LW-DETR (arXiv 2406.03459) of every size: the real-time detector on its own ViTs, images of 640 x 640, COCO.

The ViTs have 12 heads, no class token and no final norm, and attend within 4 x 4 windows except in the named blocks.
Sizes and rates are those of the scripts of https://github.com/Atten4Vis/LW-DETR. Weight decay spares the ViT's norms,
biases, LayerScale and positions (util/get_param_dicts.py) and nothing else; 300 detections of an image, 100 of the tiny
one (num_select of the scripts). Buffers are averaged with the weights (util/utils.py, ModelEma).

Differs from the source in: the average begins with a momentum of 9 / (10 + step), not with the initial weights; queries
encode their boxes in coordinates of the image, not of the padded batch (all images have one size here).
"""

from mmengine.config import read_base

with read_base():
    from .datasets.coco import *
    from .real_time_detr import *
    from .runtime import *

from vitdense.data.transforms.common import ResizeTo

model.network.backbone.update(
    name='deit_tiny_patch16_224',
    pretrained=False,
    img_size=640,
    timm_args=dict(depth=10, num_heads=12, class_token=False, final_norm=False, init_values=0.1),
)
del model.network.backbone['patch_size']
model.network.backbone.windows.update(split=4, global_blocks=(2, 4, 5, 8), prefix='average')
model.network.branches.det.adapter.update(layers=(2, 4, 5, 9), norm='batch', norm_eps=1e-5, normed=False)
optim_wrapper.groups.update(backbone_lr=0.735, backbone_no_decay=('norm', 'bias', 'layer_scale', 'pos_embed'))
train_dataloader.update(batch_size=8)
train_dataloader.dataset.transforms.resize.update(square=True, sizes=[64 * cells for cells in range(7, 15)])
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=640)
val_dataloader.update(batch_size=8)
schedule = dict(max_epochs=60, val_interval=5, decay='constant')
ema = dict(momentum=0.0003, buffers=True)
checkpoint.update(interval=1, best='det/AP')
