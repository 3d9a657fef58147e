"""What every run shares; a config changes a value by assigning to it or by path."""

seed = 0
amp = 'auto'  # bf16 where a probe of the hardware finds it faster, else float32; or 'bf16', 'fp16' (CUDA), 'off'
checkpoint = dict(interval=1000, keep=2, best='sem/mIoU', rule='greater')
ema = None  # or dict(momentum=0.0002)
early_stopping = None  # or dict(monitor='sem/mIoU', rule='greater', patience=5, min_delta=0.0)
loggers = ()  # any of 'tensorboard', 'wandb', 'mlflow', each an extra of the same name
custom_hooks = []
