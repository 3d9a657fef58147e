"""What is read from queries with masks equals what transformers reads from Mask2Former's."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask
from vitdense.types import Meta, QueryOutputs

SIDE = 384  # to which transformers enlarges every mask first
QUERIES, CLASSES = 6, 4


@pytest.fixture
def outputs() -> QueryOutputs:
    logits = 3 * torch.randn(2, QUERIES, CLASSES + 1)
    logits[:, :3, CLASSES] += 8  # three queries see no object
    masks = functional.interpolate(4 * torch.randn(2, QUERIES, 3, 3), (24, 24), mode='bilinear')
    return QueryOutputs(logits, mask_logits=masks, sizes=torch.full((2, 2), float(SIDE)), input_size=(SIDE, SIDE))


@pytest.fixture
def processor():
    return pytest.importorskip('transformers').Mask2FormerImageProcessor


METAS = [Meta(row, size=(SIDE, SIDE), orig_size=(SIDE, SIDE)) for row in range(2)]


def test_instances_equal_mask2former(outputs, processor):
    theirs = SimpleNamespace(class_queries_logits=outputs.class_logits, masks_queries_logits=outputs.mask_logits)
    wanted = processor.post_process_instance_segmentation(None, theirs, threshold=0.0, return_binary_maps=True)
    actual = InstanceTask(top_k=QUERIES).predict(outputs, METAS)
    for mine, other in zip(actual, wanted, strict=True):
        segments = other['segments_info']
        order = sorted(range(len(segments)), key=lambda row: -segments[row]['score'])
        assert mine.labels.tolist() == [segments[row]['label_id'] for row in order]
        assert mine.scores.tolist() == pytest.approx([segments[row]['score'] for row in order], abs=2e-6)
        assert torch.equal(mine.masks, other['segmentation'][order].bool())
        assert mine.scores.min() < 0.05 < 0.5 < mine.scores.max()  # queries that see no object come last


def test_label_maps_equal_mask2former(outputs, processor):
    theirs = SimpleNamespace(class_queries_logits=outputs.class_logits, masks_queries_logits=outputs.mask_logits)
    wanted = processor.post_process_semantic_segmentation(None, theirs, target_sizes=[(SIDE, SIDE)] * 2)
    task = MaskSemanticTask()
    for actual in (task.predict(outputs, METAS), task.predict(task.blendable(outputs, 'pixels'), METAS)):
        for mine, other in zip(actual, wanted, strict=True):
            assert (mine.labels != other).double().mean() < 1e-4  # ties in float32
            assert mine.labels.unique().numel() > 1
