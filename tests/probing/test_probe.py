"""Probes against numpy, and the cache of features under interruptions and changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vitdense.config.load import load_config
from vitdense.data.collate import collate
from vitdense.data.shapes import ShapesScenes
from vitdense.errors import ConfigError
from vitdense.metrics.miou import MeanIoU
from vitdense.probing import classifiers as probing_classes
from vitdense.probing.extract import FeatureExtractor, with_backbone
from vitdense.probing.feature_cache import FeatureCache, ImageFeatures, features_of, files_key, key_of, weights_key
from vitdense.probing.probe import probe
from vitdense.probing.segment import PixelProbe
from vitdense.train.start import build_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('VITDENSE_CACHE', str(tmp_path / 'cache'))


def clouds(count: int, *, classes: int = 3, channels: int = 5, seed: int = 0):
    """Return features (count, channels) around a centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, channels))
    labels = rng.integers(classes, size=count)
    return (centres[labels] + 0.7 * rng.normal(size=(count, channels))).astype(np.float32), labels


@pytest.mark.parametrize('k', [1, 7, 1000])
def test_neighbours_vote_by_their_cosine(k):
    (train, labels), (test, _) = clouds(60), clouds(20, seed=1)
    scores = probing_classes.knn_scores(
        torch.tensor(train), torch.tensor(labels), torch.tensor(test), 3, neighbours=[k]
    )[k]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    for row, cosines in enumerate(unit[1].astype(np.float64) @ unit[0].T):
        near = np.argsort(-cosines)[:k]
        votes = np.bincount(labels[near], np.exp(cosines[near] / 0.07), minlength=3)
        np.testing.assert_allclose(scores[row], votes / votes.sum(), atol=1e-4)


def test_a_class_without_neighbours_has_score_0():
    train, labels = torch.tensor([[1.0, 0], [0.9, 0.1]]), torch.tensor([1, 1])
    scores = probing_classes.knn_scores(train, labels, torch.tensor([[1.0, 1]]), 3, neighbours=[2])[2]
    assert scores.tolist() == [[0, 1, 0]]


def softmax_regression(features, labels, num_classes, rate, steps, batch, seed):
    """Momentum descent on softmax regression, written out in numpy; return the function of logits."""
    mean, deviation = features.mean(0), features.std(0)
    x = np.c_[(features - mean) / deviation, np.ones(len(features))]
    weights = np.zeros((x.shape[1], num_classes))
    speed = np.zeros_like(weights)
    generator = torch.Generator().manual_seed(seed)
    order, location = torch.randperm(len(x), generator=generator), 0
    for step in range(steps):
        if location + batch > len(x):
            order, location = torch.randperm(len(x), generator=generator), 0
        rows = order[location : location + batch].numpy()
        location += batch
        logits = x[rows] @ weights
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        speed = 0.9 * speed + x[rows].T @ (shares - np.eye(num_classes)[labels[rows]]) / batch
        weights -= rate * (1 + np.cos(np.pi * step / steps)) / 2 * speed
    return lambda rows: np.c_[(rows - mean) / deviation, np.ones(len(rows))] @ weights


def test_every_rate_is_trained_as_numpy_trains_it_alone():
    (train, labels), (test, _) = clouds(50), clouds(9, seed=1)
    rates = (0.01, 0.1)
    fit = probing_classes.fit_linear(
        torch.tensor(train), torch.tensor(labels), 3, rates=rates, steps=40, batch_size=16, seed=5
    )
    logits = fit.logits(torch.tensor(test))
    for row, rate in enumerate(rates):
        reference = softmax_regression(train.astype(np.float64), labels, 3, rate, 40, 16, 5)
        np.testing.assert_allclose(logits[row], reference(test), atol=1e-4)


def test_the_rate_is_chosen_on_images_that_were_held_out():
    train, labels = clouds(200)
    rates, steps = (1e-5, 0.01, 0.1), 60
    chosen, shares = probing_classes.choose_rate(
        torch.tensor(train), torch.tensor(labels), 3, rates=rates, steps=steps, seed=5
    )
    held = np.arange(200) % 10 == 9
    for rate, share in zip(rates, shares, strict=True):
        logits = softmax_regression(train[~held].astype(np.float64), labels[~held], 3, rate, steps, 180, 5)(train[held])
        assert share == pytest.approx((logits.argmax(1) == labels[held]).mean())
    assert shares[rates.index(chosen)] == max(shares)


# ------------------------------------------------------------------------------------------------------------- cache


class CountingExtractor:
    """Returns mean colours as features and counts the images; interrupted before more than `limit` images."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit, self.num_images = limit, 0

    def __call__(self, batch):
        if self.num_images + len(batch.metas) > self.limit:
            raise KeyboardInterrupt
        self.num_images += len(batch.metas)
        return [
            ImageFeatures(img.float().mean((1, 2)), target.image_label, (1, 1), (32, 32), (32, 32))
            for img, target in zip(batch.imgs, batch.targets, strict=True)
        ]


def extract_all(extract, count=150, key='key'):
    data = ShapesScenes(count, size=32, radius=(4, 8), split='val')
    return features_of(data, dict(batch_size=16, num_workers=0), extract, key=key, seed=0)


def test_an_interrupted_pass_goes_on_behind_its_last_whole_part(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract_all(CountingExtractor(limit=140))
    assert len(list((tmp_path / 'cache').rglob('part-*.safetensors'))) == 2  # of 64 images each
    extract = CountingExtractor()
    table = extract_all(extract).table()
    assert extract.num_images == 150 - 128
    whole = extract_all(CountingExtractor(), key='other').table()
    assert all(torch.equal(one, other) for one, other in zip(table, whole, strict=True))
    extract_all(extract)
    assert extract.num_images == 150 - 128  # all there


def test_a_damaged_part_is_made_again(tmp_path):
    before = extract_all(CountingExtractor()).table()
    part = sorted((tmp_path / 'cache').rglob('part-*.safetensors'))[1]
    part.write_bytes(part.read_bytes()[:-100])
    extract = CountingExtractor()
    after = extract_all(extract).table()
    assert extract.num_images == 64 and torch.equal(before[0], after[0])


def test_maps_of_any_size_come_back_mapped_from_the_file(tmp_path):
    cache = FeatureCache(tmp_path, 3, part=2)
    records = []
    for h, w in ((2, 3), (1, 5), (4, 4)):
        size = (h * 8 - 1, w * 8)
        labels = torch.randint(5, size, dtype=torch.uint8)
        records.append(ImageFeatures(torch.rand(h * w, 4).half(), labels, (h, w), (h * 8, w * 8), size))
    cache.write(range(0, 2), records[:2])
    cache.write(range(2, 3), records[2:])
    fresh = FeatureCache(tmp_path, 3, part=2)
    for index, record in enumerate(records):
        cached = fresh[index]
        assert torch.equal(cached.features, record.features) and cached.features.dtype == torch.float16
        assert torch.equal(cached.target, record.target)
        assert cached[2:] == record[2:]
    maps = Path('/proc/self/maps')
    assert not maps.exists() or str(tmp_path / 'part-00000') in maps.read_text()  # no copy in memory


def test_keys_follow_what_features_follow_from(tmp_path):
    state = {'a': torch.ones(2), 'b': torch.zeros(3, dtype=torch.float16)}
    assert weights_key(state) == weights_key(dict(reversed(state.items())))
    assert weights_key(state) != weights_key({**state, 'a': torch.tensor([1.0, 1 + 1e-6])})
    assert weights_key(state) != weights_key({**state, 'b': torch.zeros(3, dtype=torch.bfloat16)})
    assert (
        key_of({'type': 'A', 'x': (1, 2)}) == key_of({'x': [1, 2], 'type': 'A'}) != key_of({'type': 'A', 'x': (2, 1)})
    )
    file = tmp_path / 'image'
    file.write_text('one')
    before = files_key([file])
    file.write_text('longer')
    assert files_key([file]) != before


# -------------------------------------------------------------------------------------------------------- label maps


def test_a_linear_head_on_cached_maps_learns_and_is_scored_as_a_test_is(config_file, tmp_path, one_thread):
    options = ['train_dataloader.dataset.num_images=30', 'model.network.backbone.drop_path=0.0']
    cfg = load_config(config_file, options)
    rows = probe(cfg, work_dir=tmp_path / 'w', device='cpu', rates=[1e-5, 1e-2], steps=30)
    assert [row['head'] for row in rows] == ['linear']
    assert rows[0]['lr'] == 1e-2 and 0 < rows[0]['held_out']['1e-05'] < rows[0]['held_out']['0.01'] < 1
    assert 0.1 < rows[0]['sem/mIoU'] < 1 and rows[0]['sem/aAcc'] > 0.5
    written = json.loads((tmp_path / 'w' / 'probe.json').read_text())
    assert written['rows'] == rows and written['branch'] == 'sem'
    again = probe(cfg, work_dir=tmp_path / 'w', device='cpu', rates=[1e-5, 1e-2], steps=30)
    assert again[0]['sem/mIoU'] == rows[0]['sem/mIoU']  # from the cache, with the same batches


def test_a_head_on_cached_maps_predicts_as_in_the_model(config_file):
    cfg = load_config(config_file, ['test_dataloader.dataset.size=72'])  # no whole patches: the input is 80
    data = ShapesScenes(**{key: value for key, value in cfg.test_dataloader.dataset.items() if key != 'type'})
    model = build_model(cfg, data.metainfo, pretrained=True).eval()
    head = model.network.heads.sem
    torch.nn.init.normal_(head.classifier.weight)
    whole, half = MeanIoU(head='sem'), MeanIoU(head='sem')
    whole.dataset_meta = half.dataset_meta = data.metainfo
    batch = collate([data[index] for index in range(3)])
    ready = model.data_preprocessor(batch)
    with torch.inference_mode():
        whole.process(batch, model(ready.imgs, metas=batch.metas, valid=ready.valid, mode='predict'))
    extractor = FeatureExtractor(model, 'sem')
    records = extractor.read(batch)
    options = dict(name='sem', batch_size=2, steps=1)
    scores = PixelProbe({}, records, model.tasks['sem'], 4, **options).scores(head, records, range(3), [half])
    assert records[0].input_size == (80, 80) and records[0].features.dtype == torch.float16
    assert scores == pytest.approx(whole.evaluate(3), abs=2e-3)


def test_two_weights_have_two_caches_and_two_lines(config_file, tmp_path, one_thread, capsys):
    cfg = load_config(config_file, ['train_dataloader.dataset.num_images=12'])
    from vitdense.backbones.vit import ViT
    from vitdense.storage.weights import save_weights

    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        arguments = {key: value for key, value in cfg['model']['network']['backbone'].items() if key != 'type'}
        save_weights(tmp_path / f'{seed}.safetensors', ViT(**arguments).model.state_dict())
        files.append(str(tmp_path / f'{seed}.safetensors'))
    rows = probe(cfg, weights=files, work_dir=tmp_path / 'w', device='cpu', rates=[1e-2], steps=2)
    assert len(rows) == 2 and len(list((tmp_path / 'cache' / 'features').iterdir())) == 4
    assert '1.safetensors' in capsys.readouterr().out


def test_what_cannot_be_probed_is_refused(config_file, tmp_path):
    for options, arguments, word in [
        ((), dict(heads=['knn']), 'label maps'),
        ((), dict(heads=['svm']), 'svm'),
        ((), dict(branch='sen'), "did you mean 'sem'"),
        (['model.network.branches.sem.adapter.type=vitdense.adapters.pyramid.SimplePyramid'], {}, 'adapter'),
    ]:
        with pytest.raises(ConfigError, match=word):
            probe(load_config(config_file, options), work_dir=tmp_path / 'w', device='cpu', **arguments)


def test_backbones_do_not_share_arguments_of_the_architecture():
    recipe = dict(type='ViT', name='a', pretrained='old', patch_size=8, frozen=True)
    actual = with_backbone(recipe, ['b', 'c=file'], ['w'])
    assert [label for label, _ in actual] == ['a, w', 'b', 'c, file']
    assert actual[0][1] == {**recipe, 'pretrained': 'w'}
    assert actual[1][1] == dict(type='ViT', name='b', pretrained=True, frozen=True)
    assert actual[2][1]['pretrained'] == 'file'
