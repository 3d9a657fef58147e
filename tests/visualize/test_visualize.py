"""Images for people: sizes, colours and positions that can be checked by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.types import IGNORE, ImageClass, Instances, SemanticMap, Target
from vitdense.visualize import contact_sheet, draw, draw_target, palette, plot_curves
from vitdense.visualize.draw_boxes import box_width, draw_boxes
from vitdense.visualize.predictions import boundaries
from vitdense.visualize.text import LegendRow, add_legend, font, label_size, percent, readable_on, shorten

META = {
    'classes': {'semantic': ['road', 'sky'], 'labels': ['car', 'bus'], 'image_label': ['day', 'night']},
    'palette': {'semantic': [[200, 0, 0], [0, 0, 200]]},
}


def grey(height: int, width: int, value: int = 100) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def halves(height: int, width: int) -> torch.Tensor:
    """Return labels: 0 at the left, 1 at the right."""
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, width // 2 :] = 1
    return labels


def test_palette_is_stable_and_distinct():
    many = palette(150)
    assert many.shape == (150, 3) and many.dtype == np.uint8
    assert np.array_equal(palette(10), many[:10])  # more classes do not change colours
    assert len(np.unique(many, axis=0)) == 150
    first = palette(20).astype(float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2) + 1e3 * np.eye(20)
    assert distances.min() > 25


def test_semantic_maps_blend_the_palette_over_the_image():
    sampled = draw(grey(400, 400), {'sem': SemanticMap(halves(400, 400))}, META, alpha=0.5, legend=False)
    assert sampled.shape == (400, 400, 3) and sampled.dtype == np.uint8
    assert sampled[200, 50].tolist() == [150, 50, 50] and sampled[200, 350].tolist() == [50, 50, 150]
    assert sampled[200, 200].tolist() == [178, 178, 178]  # half white: the boundary between the two
    assert draw(grey(400, 400), {'sem': SemanticMap(halves(400, 400))}, META, alpha=0, legend=False).std() == 0


def test_arrays_and_tensors_are_the_same_image():
    img = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8)
    array = img.permute(1, 2, 0).numpy()
    prediction = {'sem': SemanticMap(halves(40, 60))}
    assert np.array_equal(draw(img, prediction, META), draw(array, prediction, META))
    assert np.array_equal(array, img.permute(1, 2, 0).numpy())  # nothing is drawn on the input itself


@pytest.mark.parametrize('size', [(64, 64), (360, 480), (1080, 1920), (40, 900), (900, 40)])
def test_the_legend_stands_beside_the_image_and_small_images_grow(size):
    sampled = draw(grey(*size), {'sem': SemanticMap(halves(*size))}, META)
    factor = -(-320 // max(size)) if max(size) < 320 else 1
    assert sampled.shape[0] >= size[0] * factor and sampled.shape[1] > size[1] * factor + 60
    panel = sampled[:, size[1] * factor :]
    assert (panel == (200, 0, 0)).all(-1).any() and (panel == (0, 0, 200)).all(-1).any()  # both swatches


def test_the_size_of_a_frame_does_not_depend_on_its_predictions():
    first = draw(grey(300, 500), {'sem': SemanticMap(torch.zeros(300, 500, dtype=torch.uint8))}, META)
    second = draw(grey(300, 500), {'sem': SemanticMap(halves(300, 500))}, META)
    assert first.shape == second.shape


def test_class_names_of_any_script_are_written():
    assert font(14).getname()[0] == 'DejaVu Sans'
    for name in ('straße', 'дорога', 'δρόμος', 'طريق'):
        sampled = font(14).getmask(name)
        assert bytes(sampled) != bytes(font(14).getmask('\uffff' * len(name)))  # not the box of an unknown letter


def test_classes_without_names_are_called_by_number():
    labels = torch.full((40, 40), 7, dtype=torch.uint8)
    named = {'classes': {'semantic': [f'class {index}' for index in range(8)]}}
    assert np.array_equal(
        draw(grey(40, 40), {'sem': SemanticMap(labels)}), draw(grey(40, 40), {'sem': SemanticMap(labels)}, named)
    )


def test_more_than_255_classes():
    labels = torch.arange(400, dtype=torch.int16).reshape(20, 20)
    assert draw(grey(20, 20), {'sem': SemanticMap(labels)}).shape[2] == 3


def test_a_long_legend_keeps_the_largest_and_counts_the_rest():
    image = np.zeros((100, 50, 3), np.uint8)
    rows = [LegendRow(f'class {index}', palette(20)[index], (index + 1) / 210) for index in range(20)]
    sampled = add_legend(image, rows, tuple(row.name for row in rows), 12)
    present = [(sampled == row.color).all(-1).any() for row in rows]
    assert sampled.shape[0] == 100 and present == [False] * sum(not here for here in present) + [True] * sum(present)
    assert 3 <= sum(present) <= 6


def test_head_fields_choose_the_class_names():
    meta = {'classes': {'parts': ['wheel', 'door']}, 'palette': {'parts': [[0, 255, 0], [255, 255, 0]]}}
    meta['head_fields'] = {'sem': 'parts'}
    sampled = draw(grey(400, 400), {'sem': SemanticMap(halves(400, 400))}, meta, alpha=1.0, legend=False)
    assert sampled[200, 50].tolist() == [0, 255, 0]


def test_instances_above_the_score_get_boxes_masks_and_names():
    masks = torch.zeros(2, 200, 200, dtype=torch.bool)
    masks[0, 60:120, 60:120] = True
    masks[1, 150:180, 150:180] = True
    boxes = torch.tensor([[60.0, 60, 120, 120], [150, 150, 180, 180]])
    actual = Instances(boxes, torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), masks)
    sampled = draw(grey(200, 200), {'det': actual}, META, legend=False)
    color = palette(2)[1]
    assert sampled[60, 90].tolist() == color.tolist()  # the line of the box
    assert np.abs(sampled[90, 90].astype(int) - (color.astype(int) + 100) // 2).max() <= 1  # inside: half the colour
    assert sampled[165, 165].tolist() == [100, 100, 100]  # the weak one is not there
    all_of_them = draw(grey(200, 200), {'det': actual}, META, legend=False, min_score=0.0)
    assert all_of_them[165, 165].tolist() != [100, 100, 100]


def test_masks_are_tinted_and_outlined_in_the_colour_of_their_class():
    masks = torch.zeros(2, 400, 400, dtype=torch.bool)
    masks[0, 100:200, 100:200], masks[1, 150:300, 150:300] = True, True
    everything = torch.tensor([[0.0, 0, 400, 400]] * 2)
    actual = Instances(everything, torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), masks)
    sampled = draw(grey(400, 400), {'det': actual}, META, legend=False)
    color = palette(2)[1].tolist()
    assert sampled[100, 150].tolist() == sampled[199, 120].tolist() == sampled[150, 250].tolist() == color
    assert sampled[199, 180].tolist() == sampled[200, 180].tolist() == color  # where one covers the other of its class
    inside = [(value + 100) // 2 for value in color]
    assert np.abs(sampled[130, 130].astype(int) - inside).max() <= 1
    assert sampled[350, 350].tolist() == sampled[98, 150].tolist() == [100, 100, 100]


def test_boxes_that_cannot_be_are_survived():
    boxes = torch.tensor([[float('nan'), 0, 1, 1], [30, 30, 10, 10], [-50, -50, 500, 500]])
    actual = Instances(boxes, torch.ones(3), torch.zeros(3, dtype=torch.int64))
    assert draw(grey(60, 60), {'det': actual}, META, legend=False).shape == (60, 60, 3)
    empty = Instances(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert np.array_equal(draw(grey(60, 60), {'det': empty}, META, legend=False), grey(60, 60).permute(1, 2, 0).numpy())


def test_a_class_keeps_its_colour_whatever_else_is_seen():
    boxes = torch.tensor([[20.0, 150, 180, 190], [20, 30, 180, 100]])
    both = Instances(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    alone = Instances(boxes[:1], torch.tensor([0.9]), torch.tensor([1]))
    frames = [draw(grey(200, 200), {'det': actual}, META, legend=False) for actual in (both, alone)]
    assert frames[0][190, 150].tolist() == frames[1][190, 150].tolist() == palette(2)[1].tolist()


def test_the_legend_counts_the_objects_that_are_shown():
    boxes = torch.tensor([[10.0, 10, 50, 50]]).repeat(3, 1)
    actual = Instances(boxes, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 1, 0]))
    sampled = draw(grey(400, 400), {'det': actual}, META)
    panel = sampled[:, 400:]
    assert (panel == palette(2)[1]).all(-1).any() and not (panel == palette(2)[0]).all(-1).any()


def test_names_of_boxes_at_one_place_do_not_hide_each_other():
    boxes = np.array([[50.0, 60, 150, 140]] * 3)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    plain = np.full((200, 300, 3), 100, np.uint8)
    sampled = draw_boxes(plain, boxes, ['first', 'second', 'third'], colors, size=12)
    areas = [(sampled == color).all(-1).sum() for color in colors]
    width, height = label_size('first', 12)
    assert min(areas) > 0.6 * width * height  # the plate of each, less its letters


def test_lines_of_boxes_grow_with_the_image():
    assert [box_width(*size) for size in ((64, 64), (480, 640), (1080, 1920))] == [1, 3, 7]


def test_an_image_class_is_written_on_the_image_or_in_the_legend():
    prediction = {'cls': ImageClass(torch.tensor([0.2, 0.8]))}
    plain = grey(200, 200).permute(1, 2, 0).numpy()
    sampled = draw(grey(200, 200), prediction, META, legend=False)
    assert (sampled != plain).any() and np.array_equal(sampled[100:], plain[100:])
    assert np.array_equal(draw(grey(400, 400), prediction, META)[:400, :400], grey(400, 400).permute(1, 2, 0).numpy())


def test_targets_show_unlabelled_pixels_as_grey_stripes():
    semantic = halves(400, 400)
    semantic[:200] = IGNORE
    sampled = draw_target(grey(400, 400), Target(semantic=semantic), META, legend=False)
    ignored = sampled[20:180, 20:180].reshape(-1, 3)
    assert np.all(ignored.max(1) == ignored.min(1)) and len(np.unique(ignored, axis=0)) == 2  # two greys
    assert sampled[300, 50].tolist() == [150, 50, 50]


def test_targets_of_every_kind_are_drawn():
    target = Target(
        boxes=torch.tensor([[5.0, 5, 30, 30]]),
        labels=torch.tensor([1]),
        masks=torch.ones(1, 64, 64, dtype=torch.bool),
        semantic=halves(64, 64),
        image_label=torch.tensor(1),
        iscrowd=torch.tensor([True]),
    )
    plain = draw_target(grey(64, 64), Target(), META)
    for field in ('boxes', 'semantic', 'image_label'):
        shown = target._replace(**{name: None for name in Target._fields if name not in (field, 'labels', 'masks')})
        assert draw_target(grey(64, 64), shown, META).shape != plain.shape or field == 'boxes'
    assert draw_target(grey(64, 64), target, META).shape[1] > 320
    assert draw_target(grey(64, 64), Target(image_label=torch.tensor([0.4, 0.6])), META).shape[1] > 320
    assert np.array_equal(
        draw_target(grey(64, 64), Target(), META, legend=False), grey(64, 64).permute(1, 2, 0).numpy()
    )


@pytest.mark.parametrize(
    'img',
    [torch.zeros(3, 8, 8), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)],
    ids=['float', 'grey', 'chw'],
)
def test_what_is_no_image_is_refused(img):
    with pytest.raises(ValueError, match='an image is'):
        draw(img, {})


def test_maps_of_another_size_and_impossible_opacities_are_refused():
    with pytest.raises(ValueError, match=r'\(40, 40\)'):
        draw(grey(40, 40), {'sem': SemanticMap(halves(20, 20))}, META)
    with pytest.raises(ValueError, match='alpha'):
        draw(grey(40, 40), {}, META, alpha=1.5)


def test_boundaries_are_the_first_pixels_after_a_change():
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    assert boundaries(labels).tolist() == [[False, False, True], [False, False, True], [True, True, True]]
    assert not boundaries(np.zeros((1, 1), np.uint8)).any()


def test_words():
    assert [percent(share) for share in (0, 0.0004, 0.0234, 0.0996, 0.431, 1)] == [
        '< 0.1 %',
        '< 0.1 %',
        '2.3 %',
        '10 %',
        '43 %',
        '100 %',
    ]
    assert shorten('a' * 30) == 'a' * 19 + '…' and shorten('road') == 'road'
    assert readable_on((255, 255, 0)) == (0, 0, 0) and readable_on((0, 0, 120)) == (255, 255, 255)


def test_contact_sheets_enlarge_small_images_and_reduce_large_ones(tmp_path):
    small = contact_sheet([grey(64, 64)] * 8, tmp_path / 'new' / 'small.jpg', titles=['title'] * 8)
    with Image.open(small) as sheet:
        assert sheet.format == 'JPEG' and 1000 < sheet.width <= 1920
    with Image.open(contact_sheet([grey(1000, 3000)] * 4, tmp_path / 'large.jpg', columns=2)) as sheet:
        assert 1800 < sheet.width <= 1920 and sheet.height < 800
    with Image.open(contact_sheet([grey(50, 60), grey(60, 50)], tmp_path / 'mixed.jpg')) as sheet:
        assert sheet.width <= 1920
    with pytest.raises(ValueError, match='at least one'):
        contact_sheet([], tmp_path / 'none.jpg')
    with pytest.raises(ValueError, match='titles'):
        contact_sheet([grey(8, 8)], tmp_path / 'none.jpg', titles=[])


def test_curves_of_whole_and_broken_rows(tmp_path):
    rows = [{'step': step, 'loss': 1 / (step + 1), 'sem.loss_ce': 1.0, 'lr': 0.1} for step in range(100)]
    rows += [
        {'step': 50, 'sem/mIoU': 0.3},
        {'step': 99, 'sem/mIoU': '0.5', 'loss': ''},
        {'step': 99, 'loss': float('nan')},
    ]
    with Image.open(plot_curves(rows, tmp_path / 'new' / 'curves.png')) as curves:
        assert curves.format == 'PNG' and curves.width > 1000
    with Image.open(plot_curves([], tmp_path / 'empty.png')) as curves:
        assert curves.width > 1000


def test_real_labels_are_readable(shared, tmp_path):
    names = (shared / 'camvid' / 'classes.txt').read_text().split()
    image = sorted((shared / 'camvid' / 'images' / 'validation').iterdir())[0]
    labels = np.array(Image.open(shared / 'camvid' / 'annotations' / 'validation' / f'{image.stem}.png'))
    labels[labels == 11] = IGNORE
    img = np.array(Image.open(image).convert('RGB'))
    sampled = draw_target(img, Target(semantic=torch.from_numpy(labels)), {'classes': {'semantic': names[:11]}})
    panel = sampled[:, img.shape[1] :]
    for index in np.unique(labels[labels != IGNORE]):
        assert (panel == palette(11)[index]).all(-1).sum() > 50  # every class that is there has its swatch


def test_a_legend_of_several_tasks_has_headings():
    meta = {'classes': {'semantic': ['ground', 'car'], 'labels': ['car'], 'image_label': ['street', 'field']}}
    image = np.zeros((300, 300, 3), np.uint8)
    outputs = {
        'det': Instances(torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([0.9]), torch.tensor([0])),
        'sem': SemanticMap(torch.zeros(300, 300, dtype=torch.uint8)),
        'cls': ImageClass(torch.tensor([0.8, 0.2])),
    }
    rows = spied_rows(lambda: draw(image, outputs, meta))
    shown = ['image', 'street', 'field', 'regions', 'ground', 'objects', 'car']
    assert [row.name for row in rows] == shown and [row.heading for row in rows] == [
        name in ('image', 'regions', 'objects') for name in shown
    ]
    rows = spied_rows(lambda: draw(image, {'sem': outputs['sem']}, meta))
    assert [row.name for row in rows] == ['ground']  # one task needs no words


def test_masks_are_outlined_where_a_map_is_painted():
    masks = torch.zeros(1, 300, 300, dtype=torch.bool)
    masks[0, 100:200, 100:200] = True
    target = Target(semantic=masks[0].to(torch.uint8), boxes=torch.tensor([[80.0, 80, 220, 220]]), masks=masks)
    target = target._replace(labels=torch.tensor([0]))
    meta = {'classes': {'semantic': ['ground', 'car'], 'labels': ['car']}}
    image = np.full((300, 300, 3), 90, np.uint8)
    both = draw_target(image, target, meta, legend=False)
    only_map = draw_target(image, target._replace(masks=None), meta, legend=False)
    assert np.array_equal(both[150, 150], only_map[150, 150]) and not np.array_equal(both, only_map)


def spied_rows(work) -> list:
    """Return the rows of the legend that `work` draws."""
    from vitdense.visualize import predictions as images

    recorded, original = [], images.add_legend
    images.add_legend = lambda img, rows, *rest: recorded.extend(rows) or original(img, rows, *rest)
    try:
        work()
    finally:
        images.add_legend = original
    return recorded
