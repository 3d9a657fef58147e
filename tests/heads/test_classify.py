"""The classification head: every pooling by hand, and the classifiers of timm's checkpoints."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.errors import CheckpointError, ConfigError
from vitdense.heads.classify import ClassHead
from vitdense.networks.shared import SharedNetwork
from vitdense.types import Features

SMALL = dict(depth=2, embed_dim=64, num_heads=4)


def features_of(*, valid=None, layers=2) -> Features:
    torch.manual_seed(1)
    maps = tuple(torch.randn(3, 8, 2, 4) for _ in range(layers))
    return Features(maps=maps, cls=tuple(torch.randn(3, 8) for _ in range(layers)), valid=valid, input_size=(32, 64))


def head_of(pool: str, **arguments) -> ClassHead:
    return ClassHead((8, 8), (16.0, 16.0), 5, pool=pool, **arguments).eval()


def test_token_puts_the_class_tokens_of_all_layers_side_by_side():
    features, head = features_of(), head_of('token')
    recorded = torch.cat(features.cls, dim=1)
    assert torch.equal(head.embed(features), recorded)
    assert torch.equal(head(features).logits, head.classifier(recorded))


def test_average_is_the_mean_of_every_map():
    features = features_of()
    expected = torch.cat([x.mean((2, 3)) for x in features.maps], dim=1)
    torch.testing.assert_close(head_of('average').embed(features), expected)


def test_both_is_all_class_tokens_and_the_mean_of_the_last_map():
    features = features_of()
    expected = torch.cat([*features.cls, features.maps[1].mean((2, 3))], dim=1)  # DINOv2's linear evaluation
    torch.testing.assert_close(head_of('both').embed(features), expected)


def test_average_counts_only_the_cells_of_the_image():
    valid = torch.zeros(3, 32, 64, dtype=torch.bool)
    valid[0], valid[1, :16, :33], valid[2, :32, :16] = True, True, True  # 2 x 4, 1 x 3 and 2 x 1 cells
    features = features_of(valid=valid, layers=1)
    features.maps[0][1, :, 1:] = float('nan')  # it must not be read
    embedded = ClassHead((8,), (16.0,), 5, pool='average').embed(features)
    torch.testing.assert_close(embedded[1], features.maps[0][1, :, 0, :3].mean(1))
    torch.testing.assert_close(embedded[2], features.maps[0][2, :, :, 0].mean(1))


def test_attention_with_equal_scores_is_the_mean_of_the_values():
    head = head_of('attention', num_heads=2)
    nn.init.zeros_(head.attn_pool.latent), nn.init.zeros_(head.attn_pool.q.bias)
    tokens = torch.cat(features_of().maps, dim=1).flatten(2).transpose(1, 2)
    values = head.attn_pool.kv(tokens)[..., 16:].mean(1)
    x = head.attn_pool.proj(values)
    torch.testing.assert_close(head.embed(features_of()), x + head.attn_pool.mlp(head.attn_pool.norm(x)))


def test_norms_stand_before_the_linear_layer():
    features = features_of()
    layer = head_of('token', norm='layer')
    recorded = nn.functional.layer_norm(torch.cat(features.cls, dim=1), (16,), eps=1e-6)
    torch.testing.assert_close(layer(features).logits, layer.classifier(recorded))
    batch = head_of('token', norm='batch').train()
    assert not list(batch.norm.parameters())
    recorded = nn.functional.batch_norm(torch.cat(features.cls, dim=1), None, None, training=True, eps=1e-6)
    torch.testing.assert_close(batch(features).logits, batch.classifier(recorded))


def test_a_single_image_cannot_train_batch_normalisation():
    features = features_of()
    features = features._replace(cls=tuple(x[:1] for x in features.cls))
    with pytest.raises(ConfigError, match='at least 2 images'):
        head_of('token', norm='batch').train()(features)


def test_wrong_words_and_missing_class_tokens_are_refused():
    with pytest.raises(ConfigError, match="pool = 'gap'"):
        head_of('gap')
    with pytest.raises(ConfigError, match="norm = 'bn'"):
        head_of('token', norm='bn')
    vit = ViT('vit_base_patch16_siglip_224', timm_args=SMALL)
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead))
    with pytest.raises(ConfigError, match='has no class token'):
        SharedNetwork(vit, {'cls': branch}, num_classes=dict(cls=5))
    branch['head'] = dict(type=ClassHead, pool='average')
    network = SharedNetwork(vit, {'cls': branch}, num_classes=dict(cls=5))
    assert network(torch.randn(2, 3, 32, 48))['cls'].logits.shape == (2, 5)


# ------------------------------------------------------------------------------------- the checkpoint's own classifier

ORIGINALS = {  # timm's model, how its classifier is built
    'deit3_small_patch16_224': (True, dict(pool='token')),
    'eva02_small_patch14_336': (False, dict(pool='average', norm='layer')),
    'vit_medium_patch16_gap_256': (True, dict(pool='average')),
    'vit_base_patch16_siglip_224': (True, dict(pool='attention', num_heads=4)),
}


def published(name: str, folder, **arguments):
    """Return timm's model with a random classifier of 7 classes, and the file of its weights."""
    model = timm.create_model(name, num_classes=7, **SMALL, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.01, std=0.15)
    save_file(model.state_dict(), folder / 'model.safetensors')
    return model, str(folder / 'model.safetensors')


def original(name: str, path: str, *, normed: bool = True, num_classes: int = 7, **head) -> SharedNetwork:
    backbone = dict(type=ViT, name=name, pretrained=path, timm_args=SMALL)
    branch = dict(adapter=dict(type=PlainMaps, normed=normed), head=dict(type=ClassHead, pretrained=True, **head))
    return SharedNetwork(backbone, {'cls': branch}, num_classes=dict(cls=num_classes)).eval()


@pytest.mark.parametrize('name', ORIGINALS)
def test_the_original_classifier_gives_the_logits_of_timm(name, tmp_path, caplog):
    normed, head = ORIGINALS[name]
    model, path = published(name, tmp_path)
    with caplog.at_level(logging.INFO, 'vitdense'):
        network = original(name, path, normed=normed, **head)
    assert any('classifier: 100 % of' in line for line in caplog.messages)
    imgs = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        ours, theirs = network(imgs)['cls'].logits, model(imgs)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_classifier_that_is_built_otherwise_is_refused_with_the_cure(tmp_path):
    _, path = published('vit_tiny_patch16_224', tmp_path, global_pool='avg')
    with pytest.raises(ConfigError, match='normed=True'):
        original('vit_tiny_patch16_224', path, normed=False)
    _, path = published('eva02_small_patch14_336', tmp_path)
    with pytest.raises(ConfigError, match="pool='average', norm='layer', pretrained=True"):
        original('eva02_small_patch14_336', path, normed=False)
    _, path = published('deit3_small_patch16_224', tmp_path)
    with pytest.raises(ConfigError, match='has 7 classes'):
        original('deit3_small_patch16_224', path, num_classes=10)


def test_weights_without_a_classifier_are_named(tmp_path):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=0, **SMALL)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    with pytest.raises(CheckpointError, match='bring no classifier'):
        original('vit_tiny_patch16_224', str(tmp_path / 'model.safetensors'))


def test_a_backbone_without_weights_has_no_classifier():
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pretrained=True))
    with pytest.raises(ConfigError, match='ViT.pretrained = False'):
        SharedNetwork(ViT('vit_tiny_patch16_224', timm_args=SMALL), {'cls': branch}, num_classes=dict(cls=7))


def test_real_weights_give_the_logits_of_timm(shared):
    path = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    backbone = dict(type=ViT, name='vit_tiny_patch16_224', pretrained=str(path))
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pretrained=True))
    network = SharedNetwork(backbone, {'cls': branch}, num_classes=dict(cls=1000)).eval()
    model = timm.create_model('vit_tiny_patch16_224', checkpoint_path=str(path)).eval()
    imgs = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(imgs)['cls'].logits, model(imgs), atol=1e-5, rtol=1e-5)
