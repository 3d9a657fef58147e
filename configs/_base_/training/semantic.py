"""Training of a trained segmenter on other data: `train.py --model MODEL --data FOLDER`, which brings the model.

Sizes are those of windows of 512 pixels; they are scaled to the size at which the model is evaluated. AdamW 1e-4 with
layer decay 0.8, gradients clipped at 1.0, 2000 steps of 8 windows.
"""

from torch.optim import AdamW

from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize, ResizeShortSide
from vitdense.metrics.miou import MeanIoU
from vitdense.train.optim import LayerDecay

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        type=SegmentationDataset,
        images='',
        labels='',
        transforms=dict(
            resize=dict(type=RandomResize, scale=(2048, 512), ratio=(0.5, 2.0)),
            crop=dict(type=RandomCrop, size=512, max_category_fraction=0.75),
            flip=dict(type=RandomFlip),
            color=dict(type=PhotometricDistortion),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(
        type=SegmentationDataset,
        images='',
        labels='',
        evaluation=True,
        transforms=dict(resize=dict(type=ResizeShortSide, size=512)),
    ),
)
val_evaluator = [dict(type=MeanIoU, head='sem')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.8),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=1,
)
schedule = dict(max_iters=2000, val_interval=500, warmup_iters=50, decay='cosine')
checkpoint = dict(interval=500, keep=2, best='sem/mIoU', rule='greater')
