"""Recipes, protocols and their steps: every number has bounds, and what a file holds beyond them is said with file and line."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter

from dap import resolved
from dap.base.errors import DapError
from dap.cli.flags import assignments
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.evaluation.training.transforms import MIXINGS, STEPS
from dap.methods import METHODS, find
from dap.recipe import Recipe
from dap.shipped import Expected


def inner(annotation: Any) -> set[type[BaseModel]]:
    """Every model that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(inner(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*(inner(part) for part in get_args(annotation)))


def roots() -> list[type[BaseModel]]:
    return [Recipe, resolved.Resolved, Protocol, Expected, *STEPS, *MIXINGS]


def unbounded(schema: Any, place: str) -> list[str]:
    """The numbers of a JSON schema without a lower or an upper bound, and the texts without a longest length."""
    found = []
    if isinstance(schema, dict):
        kind, keys = schema.get("type"), set(schema)
        if kind in ("integer", "number") and not (
            {"minimum", "exclusiveMinimum"} & keys and {"maximum", "exclusiveMaximum"} & keys
        ):
            found.append(f"{place}: a {kind}")
        for key, value in schema.items():
            found += unbounded(value, f"{place}.{key}")
    if isinstance(schema, list):
        found += [one for value in schema for one in unbounded(value, place)]
    return found


@pytest.mark.parametrize("model", sorted(set().union(*map(inner, roots())), key=lambda model: model.__name__))
def test_every_number_of_a_recipe_and_a_protocol_has_bounds(model):
    for name, field in model.model_fields.items():
        whole = field.rebuild_annotation()
        assert unbounded(TypeAdapter(whole).json_schema(), f"{model.__name__}.{name}") == []
        assert model.model_config.get("str_max_length", 10**9) <= 10_000


def test_the_walk_sees_a_number_without_bounds():
    class Loose(BaseModel):
        many: int = 1

    assert unbounded(TypeAdapter(Loose).json_schema(), "Loose") == ["Loose.properties.many: a integer"]


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_a_method_s_options_has_bounds(name):
    method = find(name)
    for option, field in (method.Options.model_fields if method.Options else {}).items():
        if {int, float} & {field.annotation, *get_args(field.annotation)}:
            for value in (10**10, -(10**10), 2**70, True):
                with pytest.raises(DapError, match=option):
                    method.parse({option: value}, name)


WRONG_RECIPES = {
    "ipc: true\n": "line 1.* ipc: true is a truth value, .*; a number is needed",
    "method: dap\nipc: 1000000000\n": "Line 2: ipc: the value should be less than or equal to 100000",
    "ipc: 010\n": "line 1: 010 would be read as another number",
    "seed: 9223372036854775808\n": "Line 1: seed: the value should be less than or equal to 9223372036854775807",
    "seed: -1\n": "Line 1: seed: the value should be greater than or equal to 0",
    "guidance:\n  scale: .inf\n": "line 2: .inf is not a finite number",
    "guidance:\n  kernel: linear\n  scale: 1e300\n": "Line 3: guidance.scale: the value should be less than",
    'data:\n  path: "a\\0b"\n': "Line 2: data.path: this text holds a NUL",
    "method: dap\nmethod: vanilla\n": "line 2: the key 'method' stands there twice",
    "method: &a dap\nclassifier: *a\n": "line 2: an alias .* is not read here",
    "options: {a: " + "[" * 30 + "]" * 30 + "}\n": "Line 1: options: it is nested more than 16 deep",
    "options: {1: 2}\n": "the key '1' is no text; put it in quotes",
    "1: 2\n": "the key '1' is no name of a field",
    "ipcs: 3\nmethod: dap\n": "Line 1: unknown key 'ipcs'. Did you mean 'ipc'",
    "[" * 200: "nested more than 64 deep",
    "method: \x80\n": "line 1: the byte 0x80 is not UTF-8",
    "data: {classes: [yes, no]}\n": "Line 1: data.classes: one of these is a truth value, .* put a word in quotes, as .yes",
    "data: {classes: [001, 010]}\n": "line 1: 001 would be read as another number; put a name in quotes",
    "data: {classes: [1.10]}\n": "names as 1.1 as a float; put the names in quotes",
    "data: {classes: [null]}\n": "names as an empty word; put the names in quotes",
    "data: {classes: [2026-01-02]}\n": "names as 2026-01-02 as a date; put the names in quotes",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_RECIPES, ids=range(len(WRONG_RECIPES)))
def test_a_recipe_that_no_set_can_have_is_refused_with_file_and_line(tmp_path, text):
    """Cases A18 and A18b among them: the file's name stays as it is, and yes, no and 001 must be quoted."""
    file = tmp_path / "a18.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(DapError, match="(?i)" + WRONG_RECIPES[text]) as caught:
        Recipe.parse(Recipe.load(file), str(file))
    assert str(caught.value).startswith(str(file))


def test_case_a18_the_file_s_name_is_not_capitalised_and_the_advice_helps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a18.yaml").write_text("data: {classes: [yes, no]}\n")
    with pytest.raises(DapError, match="^a18.yaml cannot be used. Line 1"):
        Recipe.load("a18.yaml")
    (tmp_path / "a18.yaml").write_text('data: {classes: ["yes", "no", "001", 7]}\n')
    assert Recipe.parse(Recipe.load("a18.yaml")).data.classes == ("yes", "no", "001", "7")


def test_texts_of_the_command_line_still_count_as_numbers():
    recipe = Recipe.parse({"ipc": "10", "data": {"size": "32"}, "guidance": {"scale": "0.5", "squared": "true"}})
    assert (recipe.ipc, recipe.data.size, recipe.guidance.scale, recipe.guidance.squared) == (10, 32, 0.5, True)


WRONG_PROTOCOLS = {
    "looks: 9223372036854775808": "mine.yaml, line 3: looks: the value should be less than or equal to 100000 (given: 92233",
    "epochs: true": "mine.yaml, line 3: epochs: true is a truth value",
    "size: 100000": "mine.yaml, line 3: size",
    "lr: .nan": "line 3: .nan is not a finite number",
    "std: [1e-300, 1, 1]": "line 3: std.0: 1e-300 is too close to 0",
    "cosine_length: 1e-320": "too close to 0",
    "decay_factor: 1e300": "line 3: decay_factor",
    "cases: 5": "line 3: cases",
    "cases: [{when: {}, set: 5}]": "line 3: cases.0.set",
    "cases: [{when: {ipc: '" + "9" * 5000 + "'}, set: {}}]": "the range '9999",
    "look_from: '" + "9" * 5000 + "/1'": "should be \"0\" or a fraction",
    "train: [{op: tiles, factor: 100000}]": "factor: the value should be less than or equal to 256 (given: 100000)",
    "train: [1]": "line 3: train.0: the value should be a mapping of names to values (given: 1)",
    "mix: {op: mixup, alpha: 1e-300}": "mine.yaml, line 3: mix: the mixing (mixup): alpha: 1e-300 is too close to 0",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_PROTOCOLS, ids=range(len(WRONG_PROTOCOLS)))
def test_a_protocol_that_nobody_can_train_by_is_refused_with_file_and_line(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: small-hard\nname: mine\n{text}\n")
    with pytest.raises(DapError) as caught:
        load_protocol(file)
    assert WRONG_PROTOCOLS[text] in str(caught.value)


def test_a_long_chain_of_protocols_and_a_pipe_are_refused(tmp_path):
    import os

    for number in range(30):
        (tmp_path / f"p{number}.yaml").write_text(f"extends: p{number + 1}.yaml\nname: p{number}\n")
    with pytest.raises(DapError, match="chain of 20 files"):
        load_protocol(tmp_path / "p0.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for read in (load_protocol, Recipe.load):
        with pytest.raises(DapError, match="pipe.yaml is a pipe"):
            read(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("text", ["size", "size=[", "size=*a", "size=010", "size=1.0e+999", "a" * 9000 + "=["])
def test_a_value_of_a_flag_is_read_as_files_are(text):
    with pytest.raises(DapError, match="^--set"):
        assignments([text], "--set", "FIELD")
