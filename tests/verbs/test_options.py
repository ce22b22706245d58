"""What a Python user says beside the arguments of a verb is checked where it is said, before any work."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dap.backbones import ClassifierFree
from dap.base.errors import DapError
from dap.data.real.held import Part
from dap.evaluation.plan import JudgingPlan
from dap.evaluation.training.protocol import load_protocol
from dap.recipe import Data
from dap.sampling import Batch, sample
from dap.verbs.options import Engine, Judging, Machine
from dap.workshop import Workshop

KINDS = (Engine, Judging, Machine)
FIELDS = [(kind, field.name) for kind in KINDS for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_every_field_takes_its_default_and_refuses_what_is_no_value_of_it(kind, name):
    assert getattr(kind(**{name: getattr(kind(), name)}), name) == getattr(kind(), name)
    for wrong in (object(), {"a"}, lambda: None):
        with pytest.raises(DapError, match=f"^{kind.__name__} takes {name} as .*, not "):
            kind(**{name: wrong})


@pytest.mark.parametrize(("kind", "name"), FIELDS)
@given(text=st.text(max_size=12))
def test_a_word_is_one_of_those_listed(kind, name, text):
    hint = typing.get_type_hints(kind)[name]
    known = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
    if known is None and hint in (bool, int, int | None, float | None):
        known = ()
    if known is not None and text not in known:
        with pytest.raises(DapError, match=f"{kind.__name__} takes {name} as"):
            kind(**{name: text})
    for word in known or ():
        assert getattr(kind(**{name: word}), name) == word


@given(number=st.integers(-(2**40), 2**40), name=st.sampled_from(["trials", "epochs", "neighbours"]))
def test_a_number_of_things_is_at_least_one(number, name):
    for value in (number, np.int64(number)):
        if number >= 1:
            found = getattr(Judging(**{name: value}), name)
            assert found == number and type(found) is int
        else:
            with pytest.raises(DapError, match=f"{name} as a whole number of at least 1, such as 4, not "):
                Judging(**{name: value})
    for value in (number + 0.5, float(number), str(number), True):
        with pytest.raises(DapError, match=f"{name} as a whole number"):
            Judging(**{name: value})


def test_values_in_their_usual_forms_are_taken(tmp_path):
    assert Judging(networks=["a", "b"], measures="m.py:M").networks == ("a", "b")
    assert Judging(protocol=tmp_path, teacher=tmp_path).protocol == str(tmp_path)
    assert Machine(memory=np.float32(2), disk=1).memory == 2.0
    assert Engine(engine="ray", workers=0).workers == 0
    with pytest.raises(DapError, match="workers as a whole number of at least 0"):
        Engine(workers=-1)
    with pytest.raises(DapError, match="allow_code as True or False, not 'no'"):
        Machine(allow_code="no")


@pytest.mark.parametrize("word", ["tets", "Test", "", "valid"])
def test_an_unknown_split_or_part_is_no_other_one(colours, source, word):
    with pytest.raises(DapError, match="take a split as 'train', 'validation' or 'test', not"):
        Workshop().source(Data(path=str(colours), size=8), word)
    with pytest.raises(DapError, match="take a part as 'train' or 'validation', not"):
        Part(source, word, 0.25)
    with pytest.raises(DapError, match="takes on as 'test' or 'validation', not"):
        JudgingPlan(protocol=load_protocol("quick-hard"), on=word)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("word", ["epz", "", "X"])
def test_a_push_goes_into_what_there_is(backbone, word):
    batch = Batch.of(backbone.class_names, [0], [0], 0)
    with pytest.raises(DapError, match="push_into as 'x' or 'eps', not"):
        next(sample(ClassifierFree(backbone, 1.0), None, batch, steps=2, push_into=word))
