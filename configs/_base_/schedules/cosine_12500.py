"""12 500 steps of cosine decay (facebookresearch/dinov2, dinov2/eval/linear.py: 10 epochs of 1250 steps)."""

schedule = dict(max_iters=12_500, val_interval=2_500, decay='cosine')
