"""36 epochs behind 500 steps of warm-up; a tenth of the rate after 27 and 33 (mmdetection's 3x schedule)."""

schedule = dict(
    max_epochs=36, val_interval=2, warmup_iters=500, warmup_ratio=1e-3, decay='step', milestones=(27, 33), gamma=0.1
)
