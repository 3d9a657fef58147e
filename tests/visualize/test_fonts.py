"""Names in any script: a font that has the letters draws them, or one line says which letters none has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from vitdense import visualize
from vitdense.errors import ConfigError
from vitdense.metrics.confusion import write_confusion
from vitdense.types import SemanticMap
from vitdense.visualize import curves, fonts, text


def make_font(path: Path, letters: str, *, notch: int = 0) -> Path:
    """Write a font whose `letters` are filled triangles; what it lacks is a small square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {letter: f'u{ord(letter):X}' for letter in letters}
    glyphs = {}
    for name in ('.notdef', *names.values()):
        pen = TTGlyphPen(None)
        corners = (
            [(100, 0), (100, 300), (400, 300), (400, 0)] if name == '.notdef' else [(0, 0), (450, 900), (900, notch)]
        )
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({'familyName': path.stem, 'styleName': 'Regular'})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def forget() -> None:
    for cached in (
        fonts.system_faces,
        fonts._runs,
        fonts.warn_missing_glyphs,
        fonts._face,
        fonts._named_face,
        fonts._plot_family,
        text._name_strip,
    ):
        cached.cache_clear()
    text.legend_width.cache_clear()
    fonts._warned.clear()


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system without fonts, and the folder for those that a test adds."""
    for name in ('XDG_DATA_HOME', 'XDG_DATA_DIRS', 'HOME'):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv(fonts.VARIABLE, raising=False)
    monkeypatch.setattr(fonts.sys, 'prefix', str(tmp_path / 'prefix'))
    before = font_manager.fontManager.ttflist[:]
    forget()
    yield tmp_path / 'XDG_DATA_DIRS' / 'fonts'
    forget()
    font_manager.fontManager.ttflist[:] = before


def written(words: str, *, right: bool = False) -> np.ndarray:
    canvas = Image.new('RGB', (200, 40))
    text.write_text(canvas, (190 if right else 10, 20), words, size=20, fill=(255, 255, 255), right=right)
    return np.asarray(canvas)


def sampled(names: list[str]) -> np.ndarray:
    labels = torch.arange(len(names)).repeat(4, 10).to(torch.uint8)
    return visualize.draw(
        np.zeros((4, len(names) * 10, 3), np.uint8), {'sem': SemanticMap(labels)}, {'classes': {'semantic': names}}
    )


@pytest.mark.parametrize('words', ['road 12 %', 'straße', 'гайка'])
def test_what_dejavu_has_is_drawn_as_pillow_draws_it(system, words):
    dejavu = ImageFont.truetype(Path(font_manager.findfont('DejaVu Sans')), 20)
    for right, anchor in ((False, 'lm'), (True, 'rm')):
        canvas = Image.new('RGB', (200, 40))
        ImageDraw.Draw(canvas).text((190 if right else 10, 20), words, fill=(255, 255, 255), font=dejavu, anchor=anchor)
        assert np.array_equal(written(words, right=right), np.asarray(canvas))
    assert text.text_width(words, 20) == dejavu.getlength(words)


def test_a_font_of_the_system_draws_the_letters_that_it_has(system, caplog):
    path = make_font(system / 'deep' / 'Blocks.ttf', '道路')
    make_font(system / 'LastResort.ttf', '道路', notch=400)
    expected = Image.new('RGB', (200, 40))
    font = ImageFont.truetype(path, 20)
    ascent, descent = text.font(20).getmetrics()
    ImageDraw.Draw(expected).text(
        (10, 20 + (ascent - descent) / 2), '道路', fill=(255, 255, 255), font=font, anchor='ls'
    )
    assert np.array_equal(written('道路'), np.asarray(expected))
    assert [(run.text, Path(run.face.file).stem) for run in fonts.runs('a 道 路b')] == [
        ('a ', 'DejaVuSans'),
        ('道 路', 'Blocks'),
        ('b', 'DejaVuSans'),
    ]
    assert text.text_width('a道', 20) == text.text_width('a', 20) + 20
    sampled(['道路', 'route'])
    assert caplog.text == ''


def test_letters_that_no_font_has_are_named_in_one_line(system, caplog):
    for _ in range(2):
        sampled(['道路', '도로', 'route', '車 道'])
    (record,) = caplog.records
    message = record.getMessage()
    assert all(letter in message for letter in '道路도로車') and 'VITDENSE_FONT=FILE' in message
    assert message.count('道') == 1 and 'r' not in message.partition('letters ')[2].partition(',')[0]


def test_the_font_of_the_environment_variable_is_tried_first(system, monkeypatch, caplog):
    path = make_font(system.parent / 'mine.otf', 'a道')
    monkeypatch.setenv(fonts.VARIABLE, str(path))
    assert [Path(run.face.file).stem for run in fonts.runs('a道b')] == ['mine', 'DejaVuSans']
    assert fonts.plot_families(['a道b'])[:2] == ['mine', 'DejaVu Sans']
    monkeypatch.setenv(fonts.VARIABLE, str(system / 'gone.ttf'))
    assert [Path(run.face.file).stem for run in fonts.runs('a')] == ['DejaVuSans']
    assert 'is no font with outlines that can be opened' in caplog.text
    with pytest.raises(ConfigError, match='is no font'):
        fonts.check_font(__file__)


def test_confusion_and_curves_take_the_same_fonts_and_no_formulas(system, caplog, recwarn):
    make_font(system / 'Blocks.ttf', '道')
    write_confusion(np.eye(3), ['道', '$\\frac{', '語'], system.parent)
    assert fonts.plot_style(['道']) == {'fontfamily': ['DejaVu Sans', 'Blocks'], 'parse_math': False}
    curves.plot_curves([{'step': 1, '道/_$x/mIoU': 0.5}, {'step': 2, '道/_$x/mIoU': 0.7}], system.parent / 'curves.png')
    assert 'letters 語' in caplog.text and len(caplog.records) == 1 and not recwarn.list


@pytest.mark.parametrize('name', ['two\nlines', '\udcff', 'tab\there', '', ' ', '\u202eabc', 'e\u0301'], ids=ascii)
def test_names_with_line_breaks_are_drawn_on_one_line(system, name):
    assert sampled([name, 'b']).shape[0] == sampled(['a', 'b']).shape[0]
    write_confusion(np.eye(2), [name, 'b'], system.parent)
    assert '\n' not in ''.join(run.text for run in fonts.runs(name))


def test_marks_and_joined_emoji_stay_together():
    assert list(fonts._clusters('กุ้a')) == ['กุ้', 'a']
    assert list(fonts._clusters('👩\u200d🚒👍🏽🇩🇪🇫🇷')) == ['👩\u200d🚒', '👍🏽', '🇩🇪', '🇫🇷']


def test_many_metrics_of_a_head_are_split_and_look_different():
    coco = [f'det/{name}' for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs')]
    groups = curves.metric_groups([*coco, 'sem/mIoU', 'sem/aAcc', 'far/sem/mIoU'])
    assert {title: len(keys) for title, keys in groups.items()} == {'det: AP': 6, 'det: AR': 4, 'sem': 2, 'far/sem': 1}
    assert len(set(curves.STYLES)) == 40
