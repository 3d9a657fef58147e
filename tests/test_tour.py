"""The tour names files and names that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / 'docs/tour.md').read_text(encoding='utf-8')
STOPS = re.findall(r'^## \d+\. \[(\S+)\]\(\.\./(\S+)\)\n\n(.*?)(?=\n## )', TOUR, re.MULTILINE | re.DOTALL)
OF_OTHERS = {'Preprocessor', 'numpy'}  # names of earlier stops that a later one mentions


def test_there_are_fifteen_stops_with_three_things_each():
    assert len(STOPS) == 15 and all(text == path and (ROOT / path).is_file() for text, path, _ in STOPS)
    assert [len(re.findall('^- ', body, re.MULTILINE)) for *_, body in STOPS] == [3] * 15


@pytest.mark.parametrize(('path', 'body'), [stop[1:] for stop in STOPS], ids=[stop[1] for stop in STOPS])
def test_the_names_of_a_stop_are_in_its_file(path, body):
    source = (ROOT / path).read_text(encoding='utf-8')
    names = set(re.findall(r'`([A-Za-z_]\w*)`', body)) - OF_OTHERS
    assert {name for name in names if not re.search(rf'\b{name}\b', source)} == set()


def test_the_other_files_and_links_exist():
    rest = TOUR.partition('## Where to go from here')[2]
    for file in re.findall(r'`([\w/]+\.py)`', rest):
        assert (ROOT / 'vitdense' / file).is_file() or (ROOT / file).is_file(), file
    for link in re.findall(r'\]\(([^)]+)\)', TOUR):
        assert (ROOT / 'docs' / link).exists(), link
