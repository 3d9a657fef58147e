"""The vocabulary of the project: names, docstrings, comments and messages use the terms of the field."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = ('vitdense', 'tools', 'configs', 'docs', 'tests', 'benchmarks', 'README.md', 'CONTRIBUTING.md', 'SECURITY.md')
UNCHECKED = ('tests/test_words.py',)  # it lists the words
PAPER = 'the paper or file'
NAMES = {  # words of a name in snake_case or CamelCase -> what to write
    **dict.fromkeys(('picture', 'pictures', 'drawing', 'drawings'), 'image'),
    **dict.fromkeys(('plane', 'planes'), 'input_size, grid, map'),
    **dict.fromkeys(('truth', 'truths'), 'targets'),
    **dict.fromkeys(('answer', 'answers', 'answered'), 'output, prediction'),
    **dict.fromkeys(('taught', 'rests', 'borrowed'), 'trained, frozen, omitted'),
    **dict.fromkeys(('drawn', 'draws'), 'samples, attempts'),
    **dict.fromkeys(('tell', 'tells', 'told', 'say', 'says', 'said', 'hears', 'heard'), 'log, on_progress'),
    **dict.fromkeys(('ask', 'asks', 'asked'), 'request'),
    **dict.fromkeys(('fact', 'facts'), 'context, info, metadata'),
    **dict.fromkeys(('given', 'made', 'seen', 'sees', 'knows', 'strange', 'nothing'), 'the name of the thing'),
    **dict.fromkeys(('found', 'place', 'places'), 'predictions, matches; index, location, path'),
    **dict.fromkeys(('home', 'homes', 'room', 'rooms', 'floor', 'floors', 'door', 'doors'), 'folder, module, size'),
    **dict.fromkeys(('refused', 'silenced', 'apart', 'unread'), 'skipped, masked, split, unused'),
    **dict.fromkeys(('synset', 'synsets', 'vocabulary', 'vocabularies', 'extremes'), 'class_names, wordnet'),
    **dict.fromkeys(('hat', 'hats', 'bags', 'pull', 'pulls'), 'weights, grad_output'),
    **dict.fromkeys(('perceptron', 'sureness', 'sane', 'surprise'), 'mlp, confidence, finite, nll'),
    **dict.fromkeys(('mover', 'movers'), 'optimizer'),
    'chance': 'random, bernoulli',
    'hidden': 'masked, ffn_dim',
}
PROSE = {  # words of docstrings, comments, messages and documents -> what to write
    **dict.fromkeys(('picture', 'pictures'), 'image'),
    **dict.fromkeys(('truth', 'truths'), 'target, or ground truth'),
    **dict.fromkeys(('answer', 'answers', 'answered', 'answering'), 'output, prediction'),
    **dict.fromkeys(('taught', 'borrowed', 'borrows', 'learnt', 'by heart', 'at rest'), 'trained, frozen, omitted'),
    **dict.fromkeys(('told', 'tells', 'hears', 'heard', 'sees', 'knows', 'knew'), 'what the code does'),
    **dict.fromkeys(('sureness', 'silenced', 'perceptron', 'hats', 'rooms', 'the only door'), 'the term of the field'),
    **dict.fromkeys(
        ('saw', 'feel', 'feels', 'teach', 'teaches', 'remembers', 'forgets', 'nobody'), 'what the code does'
    ),
    **dict.fromkeys(('wants', 'tell apart', 'told apart', 'must say'), 'what the code does'),
    **dict.fromkeys(('pull', 'pulls', 'leaf'), 'gradient; config'),
    **dict.fromkeys(('vocabularies', 'vocabulary', 'synsets'), 'class names'),
    r'recipes? R\d+': PAPER,
}
EXCEPTIONS: dict[tuple[str, str], str] = {  # (path, word): why it is right there
    ('tests/heads/detr/test_real_time_transformers.py', 'hidden'): 'an attribute of transformers',
}
PHRASES = (
    'ground truth',
    'ground_truth',
    'ground truths',
    'pull request',
    'lfs pull',
    'chain saw',
)  # that hold a listed word and are terms of the field
_PATTERN = re.compile(rf'\b({"|".join(PROSE)})\b', re.IGNORECASE)
_PHRASES = re.compile('|'.join(sorted(PHRASES, reverse=True)), re.IGNORECASE)
_WORDS = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+')


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every name that is defined: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith('test_'):  # a sentence
                yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string and comment; of f-strings without what is in braces."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and 'f' in token.string.split(token.string[-1])[0].lower():
            yield token.start[0], re.sub(r'\{[^{}]*\}', ' ', token.string)
        elif token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', -1)):
            yield token.start[0], token.string


def prose_faults(line: int, text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, word) of the listed words in a text that begins at `line`."""
    text = _PHRASES.sub(lambda match: ' ' * len(match[0]), text)
    for match in _PATTERN.finditer(text):
        yield line + text.count('\n', 0, match.start()), match[0].lower()


def faults(source: str, *, python: bool = True) -> Iterator[tuple[int, str]]:
    """Yield (line, word) of the listed words in a Python source, or in a document."""
    if not python:
        yield from prose_faults(1, source)
        return
    for line, name in names(ast.parse(source)):
        yield from ((line, word) for word in map(str.lower, _WORDS.findall(_PHRASES.sub('', name))) if word in NAMES)
    for line, text in [*texts(source), *sentences(ast.parse(source))]:
        yield from prose_faults(line, text)


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of the names of tests."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
            yield node.lineno, node.name.replace('_', ' ')


def is_excepted(path: str, word: str) -> bool:
    return any(fnmatch(path, pattern) and word == known for pattern, known in EXCEPTIONS)


def files() -> list[str]:
    """Return the files to check, relative to the repository."""
    paths = [path for top in CHECKED for path in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob('*'))]
    names_of_files = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in ('.py', '.md')}
    return sorted(names_of_files - set(UNCHECKED))


@pytest.mark.parametrize('path', files())
def test_a_file_uses_the_terms_of_the_field(path):
    wrong = [
        f'{path}:{line}: {word!r}: write {NAMES.get(word) or PROSE.get(word, PAPER)}'
        for line, word in faults((ROOT / path).read_text(), python=path.endswith('.py'))
        if not is_excepted(path, word)
    ]
    assert wrong == [], '\n'.join(wrong)


@pytest.mark.parametrize(
    ('source', 'word'),
    [
        ('def load_picture(): ...', 'picture'),
        ('class TruthTable: ...', 'truth'),
        ('def f(facts): ...', 'facts'),
        ('x.seen = 1', 'seen'),
        ('for mover in movers: ...', 'mover'),
        ('def test_a_head_tells_its_classes(): ...', 'tells'),
        ('"""What the network sees."""', 'sees'),
        ('x = 1  # the head is told', 'told'),
        ("raise ValueError(f'{x} is no answer')", 'answer'),
        ("y = 'the truth'", 'truth'),
        ('"""Hyper-parameters of\n\nrecipe R12."""', 'recipe r12'),
    ],
)
def test_a_listed_word_is_a_fault(source, word):
    assert word in [found for _, found in faults(source)]


def test_lines_of_documents_and_docstrings_are_those_of_the_word():
    assert list(faults('one\ntwo answers\n', python=False)) == [(2, 'answers')]
    assert list(faults('x = 1\n"""One.\n\nThe truth."""\n')) == [(4, 'truth')]


@pytest.mark.parametrize(
    'source',
    [
        'def load_image(): ...',
        'def test_a_box_that_is_drawn_is_found(): ...',
        '"""See pull request 138; git lfs pull."""',
        '"""Boxes of the ground truth."""',
        'ground_truth = 1',
        "print(f'{strange} {x.answers[0]}')",
        'x = network.hidden',
        'airplane = "plane"',
    ],
)
def test_terms_of_the_field_and_names_of_others_are_none(source):
    assert list(faults(source)) == []


def test_exceptions_are_needed():
    for (pattern, word), reason in EXCEPTIONS.items():
        matching = [path for path in files() if fnmatch(path, pattern)]
        assert reason and any(
            word in [each for _, each in faults((ROOT / path).read_text(), python=path.endswith('.py'))]
            for path in matching
        ), f'{word} is not in {pattern}: remove the exception'
