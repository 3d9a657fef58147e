"""Font selection for each character: VITDENSE_FONT, DejaVu Sans, or a system font that has the glyph."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageFont, features

from vitdense.errors import ConfigError

logger = logging.getLogger('vitdense')

VARIABLE = 'VITDENSE_FONT'  # environment variable: the font file to try first
SUFFIXES = ('.ttf', '.otf', '.ttc', '.otc')
STRIKES = (109, 160, 136, 128, 96, 64)  # pixels; sizes of fonts that hold colour bitmaps, as for emoji
MAX_LETTERS = 20  # that a warning lists

_NO_LETTERS = ('lastresort', 'blank', 'notdef')  # fonts with a box or no glyph for every character
_PLAIN_LAST = ('bold', 'italic', 'oblique', 'light', 'thin', 'black', 'mono', 'serif', 'condensed', 'medium')
_SHAPED = ((0x0590, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFEFC))  # from the right, or joined
_warned: set[str] = set()  # characters and topics that were warned about


class Face(NamedTuple):
    """A font file."""

    file: str  # '': the font that Pillow brings
    strike: int | None = None  # the only size in pixels, of a font of colour bitmaps


class Run(NamedTuple):
    """Adjacent characters drawn with one font."""

    text: str
    face: Face


def font(size: int) -> Any:
    """Return the default font at `size` pixels: that of VITDENSE_FONT, else DejaVu Sans."""
    return load(first_face(), size)


@lru_cache(maxsize=256)
def load(face: Face, size: int) -> Any:
    """Return the Pillow font of a face; bitmaps have their own size."""
    return ImageFont.truetype(face.file, face.strike or size) if face.file else ImageFont.load_default(size)


def check_font(file: str | Path) -> None:
    """Raise ConfigError unless a font file can be opened."""
    if not _is_outline(_face(str(file))):
        raise ConfigError(
            f'{Path(file).name} is no font',
            where=str(file),
            why='there is no such file' if not Path(file).is_file() else 'FreeType finds no outlines of letters in it',
            fix=f'give a file that ends in {", ".join(SUFFIXES)}',
        )


def first_face() -> Face:
    """Return the face of the default font."""
    named = os.environ.get(VARIABLE)
    return _named_face(named) or _dejavu() if named else _dejavu()


def runs(text: str) -> tuple[Run, ...]:
    """Return the parts of a line of text, each with the face that draws it; line breaks and the like become spaces.

    Letters that no font has stay with the first face, and one warning names them.
    """
    return _runs(text, first_face())


@lru_cache(maxsize=4096)
def _runs(text: str, first: Face, colored: bool = True) -> tuple[Run, ...]:
    """Return the runs of `text`; without `colored`, fonts of bitmaps are left out."""
    if text.isascii() and text.isprintable() and first == _dejavu():
        return (Run(text, first),)
    text = one_line(text)
    system = [face for face in system_faces() if colored or face.strike is None] if _lacks(text, first) else []
    lacking = {letter for letter in text if not _invisible(letter) and not _covering(letter, (first, _dejavu()))}
    together = _covering(lacking, system)
    faces = [first, _dejavu(), *([together] if together and lacking else []), *system]
    chosen: list[Run] = []
    for cluster in _clusters(text):
        letters = [letter for letter in cluster if not _invisible(letter)]
        if not letters and chosen and chosen[-1].face.strike is None:
            face = chosen[-1].face  # a space stays with the word before it
        else:
            face = _covering(letters, faces)
        chosen.append(Run(cluster, face or first))
        if face is None:
            _warn_missing(letters)
    _warn_unshaped(text)
    return tuple(Run(''.join(run.text for run in same), face) for face, same in groupby(chosen, lambda run: run.face))


def _lacks(text: str, first: Face) -> bool:
    return not all(_invisible(letter) or _covering(letter, (first, _dejavu())) for letter in text)


@lru_cache(maxsize=256)
def warn_missing_glyphs(names: tuple[str, ...]) -> None:
    """Warn, in one line, of all characters of `names` that no font has."""
    letters = {letter for name in names if not name.isascii() for letter in name if not _invisible(letter)}
    lacking = [letter for letter in sorted(letters) if not _covering(letter, (first_face(), _dejavu()))]
    _warn_missing([letter for letter in lacking if not _covering(letter, system_faces())])


def one_line(text: str) -> str:
    """Return `text` with a space for each line break, control character and byte that is no text."""
    return text if text.isprintable() else ''.join(' ' if _broken(letter) else letter for letter in text)


def new_figure(width: float, height: float) -> Any:
    """Return a figure of matplotlib, `width` x `height` inches, that needs no display and has no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def plot_style(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with which matplotlib writes `texts`: fonts that have their letters, and no formulas."""
    return {'fontfamily': plot_families(texts), 'parse_math': False}


def save_plot(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a figure of matplotlib, whose own warnings about letters that no font has are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')
        figure.savefig(path, dpi=dpi)


def plot_families(texts: Iterable[str]) -> list[str]:
    """Return the font families for matplotlib to draw `texts`, in their order of preference."""
    first = first_face()
    faces = dict.fromkeys(run.face for text in texts for run in _runs(text, first, colored=False))
    families = [_plot_family(face.file) for face in faces if face.file and face != _dejavu()]
    return [*families[: first != _dejavu()], 'DejaVu Sans', *families]


@cache
def _plot_family(file: str) -> str:
    """Register a font file with matplotlib and return its family name."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(file)
    return font_manager.FontProperties(fname=file).get_name()


@cache
def system_faces() -> tuple[Face, ...]:
    """Return the fonts of the system, upright ones of regular weight first."""
    files = {file.name.lower(): file for folder in _folders() for file in _font_files(folder)}
    usable = [file for name, file in files.items() if not any(word in name for word in _NO_LETTERS)]
    usable.sort(key=lambda file: (sum(word in file.name.lower() for word in _PLAIN_LAST), file.name))
    faces = (_face(str(file)) for file in usable)
    return tuple(face for face in faces if face is not None)


def _folders() -> Iterator[str]:
    """Yield the folders in which Linux, macOS and Windows keep fonts."""
    user = os.path.expanduser('~')
    yield from (f'{base}/fonts' for base in (os.environ.get('XDG_DATA_HOME') or f'{user}/.local/share', sys.prefix))
    yield from (
        f'{base}/fonts' for base in (os.environ.get('XDG_DATA_DIRS') or '/usr/local/share:/usr/share').split(':')
    )
    yield from (f'{user}/.fonts', f'{user}/Library/Fonts', '/Library/Fonts', '/System/Library/Fonts')
    yield from (f'{base}/Fonts' for base in (os.environ.get('WINDIR'), os.environ.get('LOCALAPPDATA')) if base)


def _font_files(folder: str) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in sorted(names) if name.lower().endswith(SUFFIXES))


@cache
def _dejavu() -> Face:
    """Return the DejaVu Sans that matplotlib brings (Latin, Greek, Cyrillic, Arabic, ...)."""
    spec = importlib.util.find_spec('matplotlib')  # finds the folder and imports nothing
    for folder in spec.submodule_search_locations if spec else ():
        path = Path(folder, 'mpl-data/fonts/ttf/DejaVuSans.ttf')
        if path.is_file():
            return Face(str(path))
    return Face('')


@cache
def _named_face(file: str) -> Face | None:
    face = _face(file)
    if _is_outline(face):
        return face
    logger.warning('%s=%s is no font with outlines that can be opened and is left out', VARIABLE, file)
    return None


def _is_outline(face: Face | None) -> bool:
    """Whether a font can be drawn in any size."""
    return face is not None and face.strike is None


@cache
def _face(file: str) -> Face | None:
    """Return the face of a file; None where it cannot be opened."""
    if not os.path.isfile(file):
        return None
    for strike in (None, *STRIKES):
        try:
            ImageFont.truetype(file, strike or 20)
        except OSError:
            continue
        return Face(file, strike)
    return None


@lru_cache(maxsize=1 << 16)
def _has(face: Face, letter: str) -> bool:
    """Whether a font draws something for a letter that it does not draw for one that does not exist."""
    flat = _flat(face)
    try:
        mask, none = flat.getmask(letter), flat.getmask('\U0010fffe')
    except OSError:  # a damaged font
        return False
    return (mask.size, bytes(mask)) != (none.size, bytes(none))


@lru_cache(maxsize=256)
def _flat(face: Face) -> Any:
    """Return the font without shaping, letter by letter."""
    if not face.file:
        return load(face, 20)
    return ImageFont.truetype(face.file, face.strike or 20, layout_engine=ImageFont.Layout.BASIC)


def _covering(letters: Iterable[str], faces: Iterable[Face]) -> Face | None:
    """Return the first face that has all letters."""
    letters = tuple(letters)
    return next((face for face in faces if all(_has(face, letter) for letter in letters)), None)


def _clusters(text: str) -> Iterator[str]:
    """Yield letters with the marks that belong to them, and joined emoji."""
    cluster = ''
    for letter in text:
        joins = unicodedata.category(letter)[0] == 'M' or letter == '\u200d' or 0x1F3FB <= ord(letter) <= 0x1F3FF
        flag = len(cluster) == 1 and all(0x1F1E6 <= ord(each) <= 0x1F1FF for each in (cluster, letter))
        if cluster and not (joins or flag or cluster[-1] == '\u200d'):
            yield cluster
            cluster = ''
        cluster += letter
    if cluster:
        yield cluster


def _broken(letter: str) -> bool:
    """Whether a letter would break the line, or is half of one."""
    return unicodedata.category(letter) in ('Cc', 'Cs', 'Zl', 'Zp')


def _invisible(letter: str) -> bool:
    return unicodedata.category(letter) in ('Cc', 'Cf', 'Zs') or 0xFE00 <= ord(letter) <= 0xFE0F


def _warn_missing(letters: Sequence[str]) -> None:
    new = [letter for letter in dict.fromkeys(letters) if letter not in _warned]
    if new:
        _warned.update(new)
        more = f' and {len(new) - MAX_LETTERS} more' if len(new) > MAX_LETTERS else ''
        logger.warning(
            'no font here has the letters %s%s, which are drawn as boxes; install one that has them (Debian: '
            'fonts-noto-core, fonts-noto-cjk), or name one: %s=FILE',
            ' '.join(new[:MAX_LETTERS]),
            more,
            VARIABLE,
        )


def _warn_unshaped(text: str) -> None:
    shaped = any(low <= ord(letter) <= high for letter in text for low, high in _SHAPED)
    if shaped and 'raqm' not in _warned and not features.check('raqm'):
        _warned.add('raqm')
        logger.warning(
            'letters such as those of %r are drawn one by one, neither joined nor from right to left: '
            'this Pillow finds no FriBiDi (Debian: libfribidi0)',
            text,
        )
