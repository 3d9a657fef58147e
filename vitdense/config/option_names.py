"""Names of options in other programs, and their names here."""

from __future__ import annotations

from collections.abc import Iterable

from vitdense.errors import did_you_mean

SIZE = 'train_dataloader.dataset.transforms.STEP.size'
# our option, or a key of the config: the names of others. The first one that a tool has is suggested.
KNOWN_AS: dict[str, str] = {
    '--min-score': 'conf confidence conf-thres conf-threshold score score-thr score-threshold threshold thresh',
    '--size': 'imgsz img-size image-size input-size resolution',
    SIZE: 'imgsz img-size image-size input-size resolution size crop-size',
    '--steps': 'epochs epoch iters iterations max-iters max-steps max-epochs',
    'schedule.max_epochs=N schedule.max_iters=None': 'epochs epoch num-epochs n-epochs max-epochs',
    'schedule.max_iters=N': 'iters iterations num-iters max-iters steps max-steps total-iters',
    '--batch': 'batch-size bs b',
    'train_dataloader.batch_size=N': 'batch-size batch bs b samples-per-gpu',
    '--lrs': 'lr learning-rate',
    'optim_wrapper.optimizer.lr=X': 'lr lr0 learning-rate base-lr',
    'optim_wrapper.optimizer.weight_decay=X': 'wd weight-decay',
    'optim_wrapper.optimizer.type=torch.optim.NAME': 'opt optimizer optim',
    'optim_wrapper.accumulative_counts=N': 'accumulate accum grad-accum accum-iter gradient-accumulation-steps',
    "optim_wrapper.clip_grad='dict(max_norm=X)'": 'clip clip-grad grad-clip clip-max-norm max-norm',
    'schedule.warmup_iters=N': 'warmup warmup-steps warmup-iters warmup-epochs',
    'schedule.val_interval=N': 'val-interval eval-interval eval-every val-every eval-freq',
    'checkpoint.interval=N': 'save-interval save-every save-period save-freq checkpoint-interval',
    'model.network.backbone.frozen=True': 'freeze frozen freeze-backbone',
    'model.network.backbone.name=NAME': 'backbone encoder arch',
    'model.network.backbone.drop_path=X': 'drop-path drop-path-rate',
    "ema='dict()'": 'ema model-ema use-ema',
    '--device': 'gpu gpus gpu-id gpu-ids device-id devices cuda cpu no-cuda use-cpu accelerator',
    '--amp': 'fp16 bf16 half precision mixed-precision autocast dtype',
    '--workers': 'num-workers nw j jobs threads',
    'train_dataloader.num_workers=N': 'num-workers nw j jobs workers threads',
    '--work-dir': 'output output-dir out out-dir save-dir project logdir log-dir results-dir exp-name run-name o',
    '--out': 'output output-dir out-dir save-dir project results-dir save o',
    '--resume': 'resume-from auto-resume continue last load-last',
    '--weights': 'checkpoint ckpt load-from pretrained init finetune finetune-from model weights-path',
    '--model': 'model-dir weights ckpt checkpoint-dir load',
    '--seed': 'random-seed manual-seed random-state',
    'seed=N': 'seed random-seed manual-seed',
    '--cfg-options': 'opts options override overrides set cfg-option opt-list',
    '--show-dir': 'show vis visualize vis-dir save-vis plots save-img show-results',
    '--show': 'view view-img display window',
    '--classes': 'names class-names classnames',
    '--num-classes': 'nc n-classes classes-count',
    '--config': 'cfg config-file cfg-file c',
    'data_root=FOLDER': 'data-dir data-path data-root dataset root dataset-dir',
    '--parallel': 'fsdp ddp fsdp2 deepspeed zero strategy launcher distributed',
    '--compile': 'torch-compile torchcompile',
    '--dry-run': 'dryrun test-run sanity-check fast-dev-run',
    '--tta': 'augment multi-scale ms flip',
    '--add-head': 'head new-head',
}


def suggestion(word: str, options: Iterable[str]) -> str:
    """Return the suggestion for an unknown option `word`, among `options` and, by `--cfg-options`, the config.

    An option of the same meaning comes first, then one of similar spelling; otherwise the result is empty.
    """
    options = list(options)
    name = word.lstrip('-').lower().replace('_', '-')
    if f'--{name}' in options:
        return f"; did you mean '--{name}'?"
    for ours, others in KNOWN_AS.items():
        if name in others.split():
            if ours in options:
                return f"; did you mean '{ours}'?"
            if not ours.startswith('--') and '--cfg-options' in options:
                return f'; it is set by --cfg-options {ours}'
    return did_you_mean(word, options, cutoff=0.82)  # --checkpoint is not --trust-checkpoint


def config_key(key: str) -> str:
    """Return the option `K=V` of the config that others call `key`, or ''."""
    name = key.lower().replace('_', '-')
    return next((ours for ours, others in KNOWN_AS.items() if not ours.startswith('--') and name in others.split()), '')
