"""Drawn scenes of 64 x 64: one to three circles, squares and triangles apart from each other, bright on dark.

Every image has boxes, masks, labels, a label map and a class; there is nothing to download.
"""

from vitdense.data.shapes import ShapesScenes

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=4096,
        split='train',
        size=64,
        num_objects=(1, 3),
        radius=(8, 18),
        background=(30, 100),
        foreground=(130, 255),
        occlusion=False,
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=200,
        split='val',
        size=64,
        num_objects=(1, 3),
        radius=(8, 18),
        background=(30, 100),
        foreground=(130, 255),
        occlusion=False,
    ),
)
