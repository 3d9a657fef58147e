"""The vocabulary of the project as a test: names, docstrings, comments and messages use the terms of the field."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = {  # part of a name in snake_case or CamelCase -> what to write instead
    **dict.fromkeys(('picture', 'pictures', 'drawing', 'drawings'), 'image'),
    **dict.fromkeys(('plane', 'planes'), 'input_size, grid, map'),
    **dict.fromkeys(('truth', 'truths'), 'target, ground_truth'),
    **dict.fromkeys(('answer', 'answers', 'answered'), 'output, prediction'),
    **dict.fromkeys(('taught', 'rests', 'unlearnt'), 'trained, frozen'),
    **dict.fromkeys(('drawn', 'draws'), 'sampled, samples_seen'),
    **dict.fromkeys(('tell', 'told', 'tells', 'say', 'says', 'said', 'heard', 'hears'), 'log, on_progress'),
    **dict.fromkeys(('ask', 'asked', 'asks'), 'request'),
    **dict.fromkeys(('fact', 'facts'), 'context, info, metadata'),
    **dict.fromkeys(('given', 'made', 'seen', 'sees', 'knows', 'strange', 'nothing'), 'the name of the thing'),
    **dict.fromkeys(('home', 'homes', 'room', 'rooms', 'floor', 'floors', 'door', 'doors'), 'folder, module, size'),
    **dict.fromkeys(('borrowed', 'refused', 'silenced', 'apart', 'unread'), 'omitted, skipped, masked, split'),
    **dict.fromkeys(('synset', 'synsets', 'vocabulary', 'vocabularies', 'extremes'), 'class_names, wordnet'),
    **dict.fromkeys(
        ('hats', 'bags', 'pull', 'pulls', 'hint', 'hints', 'perceptron', 'sureness', 'sane', 'surprise'), ''
    ),
    'chance': 'random, bernoulli',
    'hidden': 'masked, ffn_dim',
    'mover': 'optimizer',
    'movers': 'optimizers',
}
PROSE = {  # words of docstrings, comments and messages
    **dict.fromkeys(('picture', 'pictures'), 'image'),
    **dict.fromkeys(('truth', 'truths'), 'target, ground truth'),
    **dict.fromkeys(('answer', 'answers', 'answered', 'answering'), 'output, prediction'),
    **dict.fromkeys(('taught', 'borrowed', 'borrows', 'unlearnt', 'learnt', 'by heart', 'at rest'), 'trained, frozen'),
    **dict.fromkeys(('told', 'tells', 'hears', 'sees', 'knows', 'knew'), 'what the code does'),
    **dict.fromkeys(('sureness', 'silenced', 'perceptron', 'hats', 'rooms', 'doors', 'the only door', 'strange'), ''),
    **dict.fromkeys(('vocabularies', 'vocabulary', 'synsets'), 'class names'),
}
RECIPE = re.compile(r'\brecipes? R\d')  # a list that is not in the repository
EXCEPTIONS = {  # (file, word): why it is right there
    ('*', 'ground truth'): 'the term of the field',
}
NOT_YET: tuple[str, ...] = ()  # folders that still have such words
