"""Images of features: components that can be checked by hand, and sheets from the command line."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.backbones.vit import ViT
from vitdense.commands.parser import run
from vitdense.errors import ConfigError
from vitdense.inference.feature_maps import FeatureImages
from vitdense.visualize import heat_map, principal_colors

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'visualize_features.py'


def blob(height: int, width: int, *, at: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    """Features of 8 channels: a square of 4 x 4 cells with an inner difference on a quiet ground, and where it is."""
    maps, inside = 0.05 * torch.randn(8, height, width), np.zeros((height, width), bool)
    rows, columns = slice(at[0], at[0] + 4), slice(at[1], at[1] + 4)
    inside[rows, columns] = True
    maps[0, rows, columns] += 5
    maps[1, rows, at[1] : at[1] + 2] += 1  # its left half
    return maps, inside


def test_the_foreground_is_what_does_not_reach_the_border():
    maps, inside = blob(10, 14, at=(3, 4))
    for values in (maps, -maps):  # the sign of a component means nothing
        (colors,) = principal_colors([values])
        assert colors.whole.shape == colors.front.shape == (10, 14, 3)
        assert np.array_equal(colors.front.any(-1), inside)


def test_colours_mean_the_same_in_all_images():
    maps = [blob(10, 14, at=(3, 4)), blob(9, 9, at=(2, 2))]
    first, second = principal_colors([one for one, _ in maps])
    halves = []
    for colors, location in ((first, (3, 4)), (second, (2, 2))):
        left, right = (
            colors.front[location[0] : location[0] + 4, location[1] + x : location[1] + x + 2] for x in (0, 2)
        )
        halves.append((left.reshape(-1, 3).mean(0), right.reshape(-1, 3).mean(0)))
    (left, right), (other_left, other_right) = halves
    assert abs(left[0] - right[0]) > 150  # the first component of the figure is its inner difference
    assert abs(left[0] - other_left[0]) < 40 and abs(right[0] - other_right[0]) < 40


@pytest.mark.parametrize('grids', [[(1, 1)], [(1, 1), (1, 1)], [(1, 5)], [(1, 1), (3, 4)]])
def test_maps_of_single_cells_have_colours(grids):
    shown = principal_colors([torch.randn(8, *grid) for grid in grids])
    assert [one.whole.shape for one in shown] == [one.front.shape for one in shown] == [(*grid, 3) for grid in grids]


def test_heat_is_brightest_where_attention_is():
    values = torch.zeros(4, 6)
    values[1, 2] = 1.0
    image = np.full((40, 60, 3), 90, np.uint8)
    sampled = heat_map(values, image, overlay=False)
    assert sampled.shape == (40, 60, 3) and sampled[15, 25].sum() > 600 and sampled[35, 5].sum() < 30
    assert heat_map(values, image)[15, 25].sum() > heat_map(values, image)[35, 5].sum() > 0


def tiny(name: str = 'vit_tiny_patch16_224', **arguments) -> ViT:
    return ViT(name, timm_args=dict(embed_dim=24, depth=3, num_heads=2), **arguments)


@pytest.mark.parametrize('size', [(50, 200), (120, 64), (7, 9)])
def test_images_of_any_proportion(size):
    maker = FeatureImages(tiny(), size=64)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    components = maker.components([image, image.flip(-1)], layers=[0, -1])
    assert len(components) == 2 and all(sheet.dtype == np.uint8 and sheet.ndim == 3 for sheet in components)
    sheet = maker.attention(image, layers=[-1, 1], query=(size[1] - 1, 0))
    assert sheet.ndim == 3 and sheet.std() > 0


def test_attention_of_a_patch_is_that_of_its_own_row(monkeypatch):
    """Pixel (x, y) of a 30 x 60 image, seen as 4 x 8 cells, lies in row y * 4 // 30 and column x * 8 // 60."""
    requested = []
    import vitdense.inference.feature_maps as features

    original = features.attention_rows
    monkeypatch.setattr(features, 'attention_rows', lambda *words: requested.append(words[3]) or original(*words))
    FeatureImages(tiny(), size=64).attention(torch.zeros(3, 30, 60, dtype=torch.uint8), query=(59, 16))
    assert requested == [[1 + 2 * 8 + 7]]


def test_blocks_run_once_up_to_the_last_requested_layer():
    vit = tiny()
    runs = []
    for number, block in enumerate(vit.model.blocks):
        block.register_forward_hook(lambda *_, number=number: runs.append(number))
    FeatureImages(vit, size=64).attention(torch.zeros(3, 64, 64, dtype=torch.uint8), layers=[1, 0, -2])
    assert runs == [0, 1]


def test_what_cannot_be_shown_is_refused():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    maker = FeatureImages(tiny(), size=64)
    with pytest.raises(ConfigError, match='--layers = 3'):
        maker.components([image], layers=[3])
    with pytest.raises(ConfigError, match='outside'):
        maker.attention(image, query=(64, 0))
    with pytest.raises(ConfigError, match='which this ViT does not have'):
        FeatureImages(tiny('vit_base_patch16_siglip_224'), size=64).attention(image)
    with pytest.raises(ConfigError, match='less than a patch'):
        FeatureImages(tiny(), size=8)


@pytest.fixture
def tool(tmp_path, capsys):
    """Run the tool in this process; return its exit code and what it printed."""
    spec = importlib.util.spec_from_file_location('features_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        with pytest.raises(SystemExit) as left:
            run(module.main, [*map(str, words), '--out', str(tmp_path / 'out'), '--device', 'cpu'])
        return left.value.code, capsys.readouterr()

    return call


def test_the_tool_on_real_weights(tool, tmp_path, shared):
    weights = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    images = sorted((shared / 'camvid' / 'images' / 'validation').glob('*.jpg'))[:2]
    name = ('--name', 'vit_tiny_patch16_224', '--weights', weights, '--size', '96')
    assert tool(*images, *name)[0] == 0
    sheets = [tmp_path / 'out' / f'{path.stem}_pca.png' for path in images]
    assert all(Image.open(sheet).size[0] > 300 for sheet in sheets)
    assert tool(images[0], *name, '--kind', 'attention', '--layers', '5', '-1', '--query', '100,50')[0] == 0
    assert (tmp_path / 'out' / f'{images[0].stem}_attention.png').is_file()


def test_wrong_words_are_errors(tool, tmp_path):
    Image.new('RGB', (32, 32)).save(tmp_path / 'a.png')
    (tmp_path / 'a.mp4').write_bytes(b'')
    for words, hint in (
        ((tmp_path / 'a.png',), '--model DIR'),
        ((tmp_path / 'a.png', '--weights', 'x.safetensors'), '--name N'),
        ((tmp_path / 'a.png', '--name', 'vit_tiny_patch16_224', '--query', '1,2'), '--kind attention'),
        ((tmp_path / 'a.mp4', '--name', 'vit_tiny_patch16_224'), 'no image'),
    ):
        code, printed = tool(*words)
        assert code == 2 and hint in printed.err
