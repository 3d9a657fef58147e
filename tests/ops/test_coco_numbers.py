"""One policy for the numbers of COCO files: exact whole numbers in any spelling, and nothing else."""

import math

import pytest

from vitdense.ops.coco_numbers import by_id, fault_of_numbers, find, flag, image_id, shown, side, whole


@pytest.mark.parametrize('value', [7, 7.0, '7', ' 7 ', '+7', '007', '7.0', '7.', '7.00'])
def test_a_whole_number_counts_in_any_spelling(value):
    assert whole(value) == 7 and type(whole(value)) is int


@pytest.mark.parametrize(
    'value', [7.5, '7.5', True, None, '', 'seven', '7e0', '0x7', '7_0', '٧', [7], {}, math.nan, math.inf]
)
def test_anything_else_is_no_whole_number(value):
    assert whole(value) is None


def test_numbers_of_any_length_are_exact():
    assert whole(2**130) == whole(str(2**130)) == 2**130
    assert whole(float(2**70)) == 2**70 and whole(-(10**400)) == -(10**400)


@pytest.mark.parametrize('value', [0, '0', 0.0, 'false', 'False', False, ' 0 ', '0.0'])
def test_no_is_no_in_any_spelling(value):
    assert flag(value) is False


@pytest.mark.parametrize('value', [1, '1', 1.0, 'true', 'True', True])
def test_yes_is_yes_in_any_spelling(value):
    assert flag(value) is True


@pytest.mark.parametrize('value', [2, -1, '', 'no', None, 0.5, [], 'yes', math.nan])
def test_what_is_no_flag_is_not_taken_for_true(value):
    assert flag(value) is None


def test_sides_are_pixels():
    assert [side(value) for value in (120, 120.0, '120')] == [120] * 3
    assert [side(value) for value in (0, -5, 120.5, True, None, 'wide', 2**40)] == [None] * 7


def test_ids_are_found_as_they_are_written_else_by_their_number():
    locations = by_id([5, '5', '6', 'a', '007'])
    assert [find(locations, value) for value in (5, '5', 5.0, 6, '6', 'a', 7, '7', '007')] == [
        0,
        1,
        0,
        2,
        2,
        3,
        4,
        4,
        4,
    ]
    assert [find(locations, value) for value in (True, None, 5.5, 8, [5], 'b', math.nan)] == [None] * 7
    assert find(by_id(['07', '7']), 7) == 1 and find(by_id(['07', '007']), 7) is None
    assert [image_id(value) for value in (3, 3.0, '3', '', None, True, 3.5)] == [3, 3, '3', None, None, None, None]


def test_numbers_of_a_box_fit_a_float():
    assert fault_of_numbers([1, 2.5, -3]) is None
    assert fault_of_numbers([1, math.inf]) == 'its numbers are not finite'
    assert fault_of_numbers([10**400]) == 'a number is too large'
    assert fault_of_numbers([1, True]) == 'True is not a number' and fault_of_numbers(['1']) == "'1' is not a number"
    assert shown(10**400) == 'a number of about 400 digits' and shown('x' * 99, 5) == "'xxxx..."
