import pytest

from idsds.common.registry import Registry, UnknownNameError


@pytest.fixture
def fruits():
    registry = Registry("fruit")
    registry.add("apple", 1)
    registry.add("Orange", 2)
    return registry


def test_unknown_name_names_value_nearest_and_allowed(fruits):
    with pytest.raises(UnknownNameError, match=r"unknown fruit 'aple'. Did you mean 'apple'\? Allowed: Orange, apple"):
        fruits["aple"]


def test_nearest_match_ignores_case(fruits):
    with pytest.raises(UnknownNameError, match="Did you mean 'Orange'"):
        fruits["orange"]


def test_unhashable_name_is_unknown_too(fruits):
    with pytest.raises(UnknownNameError):
        fruits[["apple"]]


def test_a_taken_name_is_replaced_only_on_request(fruits):
    with pytest.raises(ValueError, match="already registered"):
        fruits.add("apple", 3)
    fruits.add("apple", 3, replace=True)
    assert fruits["apple"] == 3
    assert list(fruits) == ["apple", "Orange"]


def test_removed_name_is_gone(fruits):
    fruits.remove("apple")
    assert "apple" not in fruits
    with pytest.raises(UnknownNameError):
        fruits.remove("apple")
