"""All kinds of input, by name."""

from __future__ import annotations

from tests.fuzz.annotations import Coco, Csv, Voc, Yolo
from tests.fuzz.image_files import ClassLists, Images, LabelMaps, Shards
from tests.fuzz.models import Checkpoints, Configs, Heads, ModelFolders

FAMILIES = (Images, Coco, Yolo, Voc, Csv, LabelMaps, ClassLists, Shards, ModelFolders, Checkpoints, Heads, Configs)
BY_NAME = {family.__name__: family for family in FAMILIES}
