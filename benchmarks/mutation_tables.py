"""For `mutation.py`: the tests of each file, the numbers that may be others, and the changes that change no result."""

from __future__ import annotations

TASKS = ['tests/tasks/test_detection.py', 'tests/tasks/test_detection_losses.py']
TASKS += ['tests/tasks/test_losses_transformers.py', 'tests/tasks/test_matching.py', 'tests/tasks/test_denoising.py']
MASKS = ['tests/tasks/test_mask_classification.py', 'tests/tasks/test_mask_classification_transformers.py']
MASKS += ['tests/networks/test_eomt_transformers.py', 'tests/ops/test_mask_points.py']
PARALLEL = {'tests/tasks/test_losses.py'}  # whose tests of several processes run too
RECIPE = 'tests/recipes/test_recipes.py::test_a_config_follows_its_published_recipe'
OWN = 'tests/recipes/test_recipes.py::test_numbers_that_no_source_has_are_those_of_the_docstrings'
TESTS = {  # file of the package, or config -> its tests
    'vitdense/tasks/losses.py': ['tests/tasks/test_losses.py'],
    'vitdense/tasks/detection_losses.py': TASKS[1:3],
    'vitdense/tasks/detection.py': TASKS,
    'vitdense/tasks/denoising.py': TASKS[:1] + TASKS[2:3] + TASKS[4:],
    'vitdense/tasks/matching.py': [TASKS[3], *TASKS[:3]],
    'vitdense/tasks/mask_losses.py': MASKS,
    'vitdense/tasks/mask_matching.py': MASKS,
    'vitdense/tasks/mask_classification.py': MASKS,
    'vitdense/tasks/semantic.py': ['tests/tasks/test_semantic.py', 'tests/heads/test_losses_transformers.py'],
    'vitdense/tasks/classification.py': ['tests/tasks/test_classification.py'],
    'vitdense/tasks/reconstruction.py': ['tests/networks/test_mae.py'],
    'vitdense/ops/boxes.py': ['tests/ops/test_boxes.py', *TASKS[:2]],
    'vitdense/ops/masks.py': [
        *MASKS[3:],
        *MASKS[:3],
        'tests/ops/test_many_masks.py',
        'tests/data/coco/test_odd_files.py',
    ],
    'vitdense/ops/mask_labels.py': MASKS,
    'vitdense/ops/mixing.py': ['tests/ops/test_mixing.py'],
    'vitdense/train/schedule.py': ['tests/train/test_schedule.py'],
    'vitdense/train/hooks/mask_annealing.py': ['tests/train/hooks/test_mask_annealing.py'],
    'vitdense/train/optim.py': ['tests/train/test_optim.py', f'{RECIPE}[detection/dino_mae_b_coco_12ep]'],
    'vitdense/data/transforms/common.py': [
        'tests/data/transforms/test_common.py',
        'tests/data/transforms/test_numbers.py',
        f'{RECIPE}[semantic/linear_dinov2_b_ade20k]',
    ],
    'vitdense/data/transforms/detection.py': [
        'tests/data/transforms/test_detection.py',
        'tests/data/transforms/test_common.py',
    ],
    'vitdense/data/transforms/geometry.py': [
        f'tests/data/transforms/test_{name}.py' for name in ('common', 'numbers', 'detection')
    ],
    'vitdense/data/transforms/evaluation_crop.py': ['tests/data/transforms/test_evaluation_crop.py'],
    'vitdense/metrics/miou.py': ['tests/metrics/test_miou.py'],
    'vitdense/metrics/accuracy.py': ['tests/metrics/test_accuracy.py'],
    'vitdense/metrics/multilabel.py': ['tests/metrics/test_accuracy.py'],
    'vitdense/metrics/average_precision.py': ['tests/metrics/test_average_precision.py'],
    'vitdense/metrics/coco_curves.py': ['tests/metrics/test_average_precision.py'],
    'configs/_base_/dino.py': [f'{RECIPE}[detection/dino_mae_b_coco_12ep]'],
    'configs/_base_/eomt.py': [f'{RECIPE}[semantic/eomt_dinov2_l_ade20k]'],
    'configs/_base_/upernet.py': [f'{RECIPE}[semantic/upernet_mae_b_ade20k]', OWN],
    'configs/_base_/real_time_detr.py': [
        f'{RECIPE}[detection/{name}]' for name in ('rf_detr_dinov2_s_coco_512', 'lw_detr_small_coco')
    ],
    'configs/_base_/class_finetuned.py': [f'{RECIPE}[classification/finetuned_mae_b_imagenet]'],
    'configs/_base_/mae.py': [*(f'{RECIPE}[pretraining/mae_vit_{size}_imagenet]' for size in 'bl'), OWN],
    'configs/_base_/datasets/ade20k.py': [f'{RECIPE}[semantic/linear_dinov2_b_ade20k]'],
}

# Limits of what is read, numbers that say how much is worked on together, or mark what is worse than every cost
FREE = ('FARTHEST', 'MAX_POINTS', 'MAX_PIXELS', '_AT_A_TIME', 'MASKS_AT_A_TIME', '_LARGEST', '_WORST', '_CROWD')
FREE += ('STRIPE', 'BAND_VALUES')
EQUIVALENT = [  # a part of a line, what of it changes ('': anything), and why no result shows it
    ("choice == 'fast'", '', 'both engines count the same'),
    ('if len(used) > 1 else', '', 'a choice among one is that one'),
    ('true.sum(-1, keepdim=True) > 0', 'true.sum', 'a mean is above zero where the sum is'),
    ('(boxes_cxcywh - wanted_cxcywh).abs().sum(-1)', '-1', 'all of it is added up in the end, in whichever order'),
    ('torch.autocast(', '', 'on a CPU autocast changes none of these operations'),
    ("meta.path or f'image", '', 'the place that a message names'),
    ('max(targets.counts, default=0)', '0', 'a batch has an image'),
    ('else np.zeros(0', 'np.zeros', 'an array of nothing'),
    ('(logits.float().nan_to_num() * 0).sum((0, 2, 3))', '0', 'it becomes a map of no pixels'),
    ('last = max((number for number in ids', '0', 'every number above all ids stands behind them'),
    ('last = max((number for number in ids', '1', 'every number above all ids stands behind them'),
    (
        'np.unique(predictions.image * num',
        'predictions.image * num_categories + predictions.category',
        'no two classes become one',
    ),
    ('set(map(type, counts)) <= {int}', 'set(map(type, counts)) <= {int}', 'the long way gives the same whole numbers'),
    ('torch.zeros(0,', 'torch.zeros', 'a tensor of nothing'),
    ('return torch.zeros((1, 0, 0)', 'torch.zeros', 'a tensor of nothing'),
    ('else np.zeros((0, 4))', 'np.zeros', 'an array of nothing'),
    ('self._calibration = torch.zeros(3, bins', '', 'every evaluation sets it before it is read'),
    ('self._five = 0', '', 'every evaluation sets it before it is read'),
    ('else targets.new_zeros(0, 1)', '', 'a comparison with nothing is nothing, whatever its other side'),
    ('val_interval or 1)):', '1', 'every number from 1 on passes the check'),
    ('return 1.0 if progress < begin else', 'progress < begin', 'a power of 1 is 1'),
    ("t')[0] > 0.5", "_original(mask, meta, mode='nearest-exact')[0] > 0.5", 'the mask holds 0 and 1'),
    ('kept = range(needed + (side - needed) % 2', 'side - needed', 'even where the sum is'),
    ('(n * short // shortest - whole) % 2', 'n * short // shortest - whole', 'even where the sum is'),
    ('(logits.float().nan_to_num() * 0).sum', '(logits.float().nan_to_num() * 0).sum', 'a mean of zeros is zero'),
    ('(logits.nan_to_num() * 0).sum', '(logits.nan_to_num() * 0).sum', 'a mean of zeros is zero'),
    ('[rows.clamp(min=-1)].where(rows >= 0', '1', 'who has no object reads the last row, and drops it'),
    ('torch.cat([boxes, boxes.new_full((1, 4)', '1', 'only the last of these rows is read'),
    ('torch.cat([boxes, boxes.new_full((1, 4)', '0.5', 'boxes of queries without an object cost nothing'),
    ('else targets.labels[:0]', '0', 'the costs of no object are none'),
    ('IGNORED = -2', '2', 'a name for any number below NO_OBJECT'),
    ('alpha = -1 if self.alpha is None', '1', 'every negative number leaves it out'),
    (
        'np.flatnonzero(pairs[num_classes:].sum(1))',
        'pairs[num_classes:].sum',
        'a mean is not zero where the sum is not',
    ),
    ('np.flatnonzero(pairs[:, num_classes:].sum(0))', 'pairs[:, num_classes:].sum', 'as above'),
    ('record = dict(id=row + 1', '1', 'every number but 0 is an id'),
    ('int(cells.max()) + 1', '1', 'a row more than is read'),
    ('easy = 2.0', '2.0', 'every number above 1 is above every probability'),
    ('labels = torch.zeros((batch, length)', 'torch.zeros', 'labels of filler become 0 in the end'),
]
