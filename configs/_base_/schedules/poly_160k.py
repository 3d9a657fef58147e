"""160 000 steps of polynomial decay behind 1500 of warm-up (open-mmlab/mmsegmentation, configs/_base_/schedules)."""

schedule = dict(max_iters=160_000, val_interval=16_000, warmup_iters=1500, warmup_ratio=1e-6, decay='poly', power=1.0)
