"""Errors cross from one process to another without losing anything."""

import pickle

import pytest

from oncofed_common import errors


def _kinds(kind=errors.OncofedError):
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _kinds(child))]


@pytest.mark.parametrize("kind", _kinds())
def test_an_error_comes_out_of_another_process_as_it_went_in(kind):
    error = kind("found it", allowed="this", next="do that", code="so").beside({"count": 3})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()
    assert (again.facts, str(again)) == (error.facts, str(error))
