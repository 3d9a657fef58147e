"""Mutated checkpoints, model folders, head files and configs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.family import Family, attempt, pixels
from tests.fuzz.mutate import ODD, locations, mutate_bytes, mutate_json, mutate_text, mutate_value


class Call:
    """Pickles into a call of `function`."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def payloads(marker: Path) -> list[Any]:
    """Return objects that write the file `marker` when they are unpickled without care."""
    import subprocess

    return [
        Call(os.system, f'touch {marker}'),
        Call(exec, f"open({str(marker)!r}, 'w')"),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        Call(open, str(marker), 'w'),
        Call(subprocess.call, ['touch', str(marker)]),
        Call(getattr, 'a', 'upper'),
        Call(torch.load, str(marker)),
    ]


RECIPE = {
    'type': 'vitdense.model.DenseModel',
    'network': {
        'type': 'vitdense.networks.shared.SharedNetwork',
        'backbone': {
            'type': 'vitdense.backbones.vit.ViT',
            'name': 'vit_tiny_patch16_224',
            'img_size': 32,
            'timm_args': {'embed_dim': 24, 'depth': 2, 'num_heads': 2},
        },
        'branches': {
            'sem': {
                'adapter': {'type': 'vitdense.adapters.plain.PlainMaps'},
                'head': {'type': 'vitdense.heads.linear.LinearHead', 'norm': 'batch', 'dropout': 0.1},
            },
            'det': {
                'adapter': {'type': 'vitdense.adapters.pyramid.SimplePyramid', 'channels': 16},
                'head': {
                    'type': 'vitdense.heads.detr.deformable_detr.DeformableDetrHead',
                    'channels': 16, 'num_heads': 2, 'ffn_dim': 16, 'num_encoder_layers': 1, 'num_decoder_layers': 2,
                    'num_queries': 3, 'num_levels': 4,
                },
            },
        },
    },
    'tasks': {
        'sem': {'type': 'vitdense.tasks.semantic.SemanticTask'},
        'det': {'type': 'vitdense.tasks.detection.DetectionTask', 'nms_iou': 0.7},
    },
    'tta': None,
    'tiler': {'type': 'vitdense.test_time.sliding_window.Tiler', 'size': 32, 'stride': 16, 'divisor': 16},
}  # fmt: skip
FIELDS = {'semantic': ['a', 'b', 'c'], 'labels': ['cat', 'dog']}
TRANSFORMS = [
    {'type': 'vitdense.data.transforms.common.ResizeTo', 'size': (48, 64)},
    {'type': 'vitdense.data.transforms.evaluation_crop.EvaluationCrop', 'size': 32},
]


def write_model(folder: Path) -> None:
    """Write a model folder with two heads."""
    from vitdense.checkpoints.model_folder import save_model_folder
    from vitdense.registry import build

    torch.manual_seed(0)
    model = build(RECIPE, classes=FIELDS)
    metainfo = {'classes': FIELDS, 'palette': {'semantic': [(1, 2, 3)] * 3}, 'category_ids': {'labels': [1, 2]}}
    points = {'det': {'threshold': [0.3, None], 'temperature': 1.5}}
    extra = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'step': 3, 'operating_points': points}
    save_model_folder(folder, RECIPE, model.state_dict(), metainfo=metainfo, transforms=TRANSFORMS, extra=extra)


class ModelFolders(Family):
    """Model folders: `model.json` with any values, and damaged `model.safetensors` with a right checksum."""

    def prepare(self) -> None:
        write_model(self.folder / 'whole')
        self.info = json.loads((self.folder / 'whole' / 'model.json').read_text())
        self.weights = (self.folder / 'whole' / 'model.safetensors').read_bytes()
        self.image = pixels(40, 56)
        self.read(json.dumps(self.info).encode(), self.weights)

    def run(self, random: Random) -> None:
        if random.random() < 0.75:
            self.read(mutate_json(self.info, random), self.weights)
            return
        header = int.from_bytes(self.weights[:8], 'little') + 8
        cut = random.choice((header, header, len(self.weights)))
        weights = mutate_bytes(self.weights[:cut], random) + self.weights[cut:]
        info = {**self.info, 'weights': {'file': 'model.safetensors', 'sha256': hashlib.sha256(weights).hexdigest()}}
        self.read(json.dumps(info).encode(), weights)

    def read(self, info: bytes, weights: bytes) -> None:
        from vitdense.checkpoints.trained import read_trained
        from vitdense.inference.predictor import load

        folder = self.folder / 'model'
        folder.mkdir(exist_ok=True)
        (folder / 'model.json').write_bytes(info)
        (folder / 'model.safetensors').write_bytes(weights)

        def predict() -> None:
            result = load(folder, device='cpu', amp='off')(self.image)
            result.to_coco(1) if result.boxes is not None else None

        attempt(predict, lambda: read_trained(folder))


class Checkpoints(Family):
    """Checkpoints of a run and weight files: damaged bytes, odd values, and pickles with code."""

    def prepare(self) -> None:
        from vitdense.registry import build

        torch.manual_seed(0)
        state = build(RECIPE, classes=FIELDS).state_dict()
        config = f'model = {RECIPE!r}\nval_dataloader = dict(dataset=dict(transforms={TRANSFORMS!r}))\n'
        self.content = {
            'format': 1, 'version': '0.1', 'config': config, 'seed': 0, 'amp': 'off', 'batch_size': 2, 'world_size': 1,
            'step': 4, 'samples_seen': 8, 'classes': FIELDS, 'metainfo': {'classes': FIELDS},
            'metrics': {'sem/mIoU': 0.5}, 'best': {'step': 4, 'value': 0.5},
            'state_dict': dict(list(state.items())[:12]),
            'omitted_weights': {'a': ['b', 'c']}, 'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}},
            'accumulative_counts': 1, 'parameter_groups': [['a']], 'validation_pending': False,
        }  # fmt: skip
        self.payloads = payloads(self.marker)
        self.read(self.saved(self.content), Random(0))

    def saved(self, content: Any, **options: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, **options)
        return stream.getvalue()

    def run(self, random: Random) -> None:
        part = random.randrange(6)
        old = {'_use_new_zipfile_serialization': random.random() < 0.7}
        if part == 0:
            data = mutate_bytes(self.saved(self.content, **old), random)
        elif part == 1:
            data = self.saved(mutate_value(self.content, random), **old)
        elif part == 2:
            content = {**self.content, random.choice(list(self.content)): random.choice(self.payloads)}
            data = self.saved(content, **old)
        elif part == 3:
            data = pickle.dumps(random.choice(({'state_dict': self.payloads}, *self.payloads)), random.randrange(6))
        elif part == 4:
            code = mutate_bytes(pickle.dumps({'a': self.payloads[0]}, 2), random)
            data = self.with_pickle(lambda _: code)
        else:
            data = self.with_pickle(lambda code: mutate_bytes(code, random))
        self.read(data, random)

    def with_pickle(self, change: Callable[[bytes], bytes]) -> bytes:
        """Return a file of torch whose pickle is what `change` makes of it."""
        source, stream = zipfile.ZipFile(io.BytesIO(self.saved(self.content))), io.BytesIO()
        with zipfile.ZipFile(stream, 'w') as archive:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith('data.pkl'):
                    data = change(data)
                archive.writestr(name, data)
        return stream.getvalue()

    def read(self, data: bytes, random: Random) -> None:
        from vitdense.checkpoints.run import find_checkpoint, read_best, read_checkpoint
        from vitdense.checkpoints.trained import read_state, read_trained
        from vitdense.storage.weights import read_weights

        folder = self.folder / 'run'
        folder.mkdir(exist_ok=True)
        path = folder / random.choice(('step_4.pth', 'step_4.pth', 'best.pth', 'w.pt', 'w.bin', 'w.safetensors'))
        path.write_bytes(data)
        try:
            attempt(
                lambda: read_trained(path), lambda: read_state(path), lambda: read_weights(path),
                lambda: read_checkpoint(path), lambda: find_checkpoint(folder), lambda: read_best(folder),
            )  # fmt: skip
        finally:
            path.unlink()


class Heads(Family):
    """Head files beside the model folder of their backbone."""

    def prepare(self) -> None:
        from vitdense.checkpoints.model_folder import read_model_folder
        from vitdense.multihead.merge import split_heads

        write_model(self.folder / 'model')
        model, info = read_model_folder(self.folder / 'model')
        split_heads(self.folder / 'model', self.folder / 'heads')
        self.path = self.folder / 'heads' / 'sem.json'
        self.info = json.loads(self.path.read_text())
        self.weights = self.path.with_suffix('.safetensors').read_bytes()
        self.read(json.dumps(self.info).encode())

    def run(self, random: Random) -> None:
        self.read(mutate_json(self.info, random))

    def read(self, data: bytes) -> None:
        from vitdense.checkpoints.trained import is_head_file, read_trained

        self.path.write_bytes(data)
        if is_head_file(self.path):
            read_trained(self.path)


class Configs(Family):
    """Config files and `--cfg-options`: values of a whole config are replaced, and its model and data are built."""

    def prepare(self) -> None:
        from tests.conftest import CONFIG
        from vitdense.config.load import load_config

        self.text = CONFIG
        (self.folder / 'whole.py').write_text(CONFIG)
        self.plain = {
            key: value for key, value in dict(load_config(self.folder / 'whole.py')).items() if key != 'filename'
        }
        self.read(CONFIG.encode(), [])

    def run(self, random: Random) -> None:
        if random.random() < 0.4:
            return self.read(mutate_text(self.text, random), [])
        actual = ['.'.join(map(str, path)) for path in locations(self.plain)]
        options = []
        for _ in range(random.choice((1, 1, 2))):
            key = random.choice(actual)
            key = random.choice((key, key, key, '+' + key, key + 's', key.upper(), key + '.x', '+' + key + '.new'))
            value = random.choice(ODD)
            options.append(f'{key}={random.choice((value, repr(value), [value], "(1, 2)", "[a, b]", "dict(a=1)"))}')
        self.read(self.text.encode(), options)

    def read(self, data: bytes, options: list[str]) -> None:
        from vitdense.config.dump import config_text
        from vitdense.config.from_text import read_config_text
        from vitdense.config.load import load_config

        path = self.folder / 'a.py'
        path.write_bytes(data)
        cfg = load_config(path, options)
        read_config_text(config_text(cfg))
