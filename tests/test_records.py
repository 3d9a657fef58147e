"""Records survive what carries them: torchvision v2 transforms, pinned memory, worker processes, mmengine's cast."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision import tv_tensors
from torchvision.transforms import v2

from vitdense.model import on_device
from vitdense.types import Batch, Meta, Sample, Target


def sample() -> Sample:
    """A 4 x 6 image with two boxes; the left one is 2 x 3 pixels, its mask and semantic map say the same."""
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 0:3, 0:2] = True
    masks[1, 2:4, 3:6] = True
    return Sample(
        tv_tensors.Image(torch.arange(72, dtype=torch.uint8).view(3, 4, 6)),
        Target(
            boxes=tv_tensors.BoundingBoxes([[0.0, 0, 2, 3], [3, 2, 6, 4]], format='XYXY', canvas_size=(4, 6)),
            labels=torch.tensor([7, 8]),
            masks=tv_tensors.Mask(masks),
            semantic=tv_tensors.Mask(masks[0].to(torch.uint8)),
            iscrowd=torch.tensor([False, True]),
        ),
        Meta(image_id=3, path='a.jpg', orig_size=(4, 6), size=(4, 6)),
    )


def batch() -> Batch:
    one = sample()
    return Batch(one.img[None].as_subclass(torch.Tensor), [one.target], [one.meta], torch.ones(1, 4, 6).bool())


def same(a, b) -> bool:
    """Return whether two trees of records have the same types and the same values."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


def test_a_flip_moves_image_boxes_and_masks_together_and_keeps_the_rest():
    before, after = sample(), v2.RandomHorizontalFlip(p=1.0)(sample())
    assert type(after) is Sample and type(after.target) is Target and type(after.meta) is Meta
    assert torch.equal(after.img, before.img.flip(-1))
    assert after.target.boxes.tolist() == [[4, 0, 6, 3], [0, 2, 3, 4]]
    assert torch.equal(after.target.masks, before.target.masks.flip(-1))
    assert torch.equal(after.target.semantic, before.target.semantic.flip(-1))
    assert after.target.labels.tolist() == [7, 8] and after.meta == before.meta
    assert after.target.area is None and after.target.image_label is None


def test_tv_tensors_are_kept_through_a_pipeline():
    after = v2.Compose([v2.Resize((8, 12)), v2.RandomVerticalFlip(p=1.0)])(sample())
    kinds = [type(value) for value in (after.img, after.target.boxes, after.target.masks, after.target.semantic)]
    assert kinds == [tv_tensors.Image, tv_tensors.BoundingBoxes, tv_tensors.Mask, tv_tensors.Mask]
    assert after.target.boxes.canvas_size == (8, 12)
    assert after.target.boxes[0].tolist() == [0, 2, 4, 8]


def test_sanitizing_needs_a_labels_getter():
    broken = sample()
    boxes = tv_tensors.wrap(torch.tensor([[0.0, 0, 2, 3], [3, 2, 3, 4]]), like=broken.target.boxes)
    broken = broken._replace(target=broken.target._replace(boxes=boxes))
    with pytest.raises(ValueError, match='label'):
        v2.SanitizeBoundingBoxes()(broken)
    target = v2.SanitizeBoundingBoxes(labels_getter=lambda one: (one.target.labels, one.target.iscrowd))(broken).target
    assert (target.boxes.tolist(), target.labels.tolist(), target.iscrowd.tolist()) == ([[0, 0, 2, 3]], [7], [False])
    assert target.masks.shape == (1, 4, 6) and target.semantic.shape == (4, 6)


def test_pinning_keeps_records(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda self, *device: pinned.append(self) or self.clone())
    got = pin_memory(batch())
    assert same(got, batch())
    assert len(pinned) == 7  # imgs, valid, and the five tensors of the target


class OneSample:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return sample()


def as_they_are(samples: list[Sample]) -> Batch:
    imgs, targets, metas = zip(*samples, strict=True)
    return Batch(torch.stack(imgs), list(targets), list(metas))


def test_worker_processes_send_records():
    (got,) = DataLoader(
        OneSample(), batch_size=2, num_workers=1, collate_fn=as_they_are, multiprocessing_context='fork'
    )
    assert type(got) is Batch and got.valid is None
    for target, meta in zip(got.targets, got.metas, strict=True):
        assert same(target, sample().target) and same(meta, sample().meta)


def test_records_are_moved_to_the_device_as_records():
    assert same(on_device(batch(), torch.device('cpu')), batch())
    moved = on_device(batch(), torch.device('meta'))
    assert {moved.imgs.device.type, moved.valid.device.type, moved.targets[0].boxes.device.type} == {'meta'}
    assert type(moved.metas[0]) is Meta and moved.targets[0].area is None


def test_records_are_pickled_as_records():
    assert same(pickle.loads(pickle.dumps(batch())), batch())


def test_the_length_of_a_target_is_its_number_of_fields_not_of_objects():
    target = sample().target
    keep = torch.tensor([True, False])
    assert len(target) == len(Target._fields) == 8
    with pytest.raises(TypeError):
        target[keep]
    kept = target._replace(boxes=target.boxes[keep], labels=target.labels[keep])
    assert (len(kept), len(kept.boxes), kept.labels.tolist()) == (8, 1, [7])


def test_records_do_not_change():
    with pytest.raises(AttributeError):
        sample().target.boxes = None
