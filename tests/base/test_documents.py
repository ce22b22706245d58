"""Documents of strangers: the value, or one sentence with file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from dap.base import documents, files
from dap.base.errors import DapError
from dap.base.fields import FromFile, Inside
from dap.base.mistakes import explain, told
from dap.recipe import Recipe


class Told(FromFile, frozen=True):
    a: int = Field(ge=0)
    b: list[str] = []


WRONG = {
    b'{"a":1,\n"b":["x",\n3],"c":2}': "line 3: b.1: the value should be a text (given: 3); line 3: c: there is no such key",
    b'{"a":1,"a":2}': "the key 'a' stands there twice",
    b'{"a":NaN}': "NaN is not a number",
    b'{"a":1e999}': "too large",
    b'{"a":true}': "a whole number",
    b'\n\xff{"a":1}': "line 2: the byte 0xff is not UTF-8",
    b"[" * 100_000: "nested more than 64 deep",
    b'{"a":' + b"9" * 5000 + b"}": "too large for a whole number",
    b'{"a":\n-1}': "line 2: a: the value should be greater than or equal to 0",
    b"": "line 1: this is not JSON",
}


WRONG_YAML = {
    b"a: 1\nb: &x [y]\nc: *x\n": "line 3: an alias",
    b"a: 1\na: 2\n": "line 2: the key 'a' stands there twice",
    b"a: .nan": "line 1: .nan is not a finite number",
    b"b: []\na: 2026-99-99": "line 2: '2026-99-99' cannot be read",
    b"a: true": "line 1: a: the value should be a whole number (given: True)",
    b"a: !!python/object/apply:os.system [x]": "line 1: could not determine a constructor",
    b"? [a]\n: 1": "unhashable",
    b"[1,2": "line 1: expected",
    b"[" * 5000: "nested more than 64 deep",
    b"a: \x00": "is not YAML",
    b"<<: {a: 1}": "line 1: a merge key",
    b"a: 1" + b"0" * 5000: "cannot be read",
}


@pytest.mark.parametrize(
    ("read", "data", "says"),
    [
        *((documents.read_json, *one) for one in WRONG.items()),
        *((documents.read_yaml, *one) for one in WRONG_YAML.items()),
    ],
    ids=[*(f"json-{k}" for k in range(len(WRONG))), *(f"yaml-{k}" for k in range(len(WRONG_YAML)))],
)
def test_a_wrong_document_is_a_sentence_with_file_and_line(
    tmp_path: Path, read: Callable[..., object], data: bytes, says: str
) -> None:
    file = tmp_path / "x"
    file.write_bytes(data)
    with pytest.raises(DapError) as caught:
        read(file, Told)
    assert str(caught.value).startswith(str(file)) and says in str(caught.value)


def test_right_values_come_through_with_a_byte_order_mark_too(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b'\xef\xbb\xbf{"a": 3, "b": ["x"]}')
    assert documents.read_json(file, Told) == documents.read_yaml(file, Told) == Told(a=3, b=["x"])


def test_lines_that_cannot_be_used_are_told_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a":1}\n\n{}\n\xff\n' + b"[" * 200_000 + b"\n" + b"x" * (2 << 20) + b'\n{"a":2}\n{"a":')
    lines = list(documents.read_lines(file, Told))
    assert [line.value.a for line in lines if line.value] == [1, 2]
    problems = [line.problem for line in lines if line.problem]
    assert [problem.split(": ")[0] for problem in problems] == [f"{file}, line {k}" for k in (3, 4, 5, 6, 8)]
    assert list(documents.read_lines(tmp_path / "none", Told)) == []


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "out.png").symlink_to(__file__)
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(DapError, match="a pipe, a socket or a device"):
            files.inside(tmp_path, name)
    for name in ("../x", "out.png"):
        with pytest.raises(DapError):
            files.inside(tmp_path, name)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b", "", ".", "a\0b", "..\\b", "a" * 300])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(DapError):
        documents.fitted(path, Inside, "manifest.jsonl")
    assert documents.fitted("images/cat/00000.png", Inside, "manifest.jsonl") == "images/cat/00000.png"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200), st.text(alphabet="{}[]\":,-+.eE019 \n\t&*!<?|>'%@x~", max_size=60).map(str.encode)
    )
)
def test_any_bytes_give_a_value_or_a_sentence(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(data)
    for read in (documents.read_json, documents.read_yaml):
        try:
            read(file, Told)
        except DapError as error:
            assert str(file) in str(error) and len(str(error)) < 2000
    for line in documents.read_lines(file, Told):
        assert (line.value is None) != (line.problem is None)


def test_a_message_is_one_line_that_every_terminal_can_show() -> None:
    """A class named "a\\n", a file name in Latin-1 and an escape sequence change no terminal and hide no line."""
    said = str(DapError("no images in a\n\x1b[2J of \udce9t\udce9 " + "x" * 9000 + "; add some."))
    assert said.startswith("no images in a\\n\\x1b[2J of \\xe9t\\xe9 xxx") and said.endswith("; add some.")
    assert said.isprintable() and len(said) <= 3600 and said.encode()


def reads(tmp_path: Path) -> list[Callable[[str], object]]:
    """Whoever checks values of a person: each reads a YAML text of one mapping."""
    from dap import shipped
    from dap.evaluation.training.protocol import load_protocol
    from dap.evaluation.training.transforms import parse
    from dap.recipe import Recipe

    def written(text: str) -> Path:
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return [
        lambda text: Recipe.load(written(text)),
        lambda text: Recipe.load(written(f"data: {{{text}}}")),
        lambda text: shipped.expected(written(f"expected: {{{text}}}")),
        lambda text: load_protocol(written(f"extends: small-hard\nname: mine\n{text}")),
        lambda text: parse([{"op": "flip", text.partition(":")[0]: 3}]),
    ]


def test_a_mistake_is_told_in_the_same_words_wherever_it_stands(tmp_path: Path) -> None:
    for read in reads(tmp_path):
        with pytest.raises(DapError, match=r"(?i)unknown key '(\w+\.)?qqq'\. Known: "):
            read("qqq: 3")


def test_an_unknown_key_is_told_however_deep_it_lies() -> None:
    class Inner(FromFile, frozen=True):
        size: int = 1

    class Outer(FromFile, frozen=True):
        parts: dict[str, list[Inner]] = {}

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"parts": {"a": [{"sise": 2}]}, "b": 1})
    assert explain(caught.value, Outer, "parts: {a: [\n{sise: 2}]}\nb: 1\n") == (
        "Line 2: unknown key 'parts.a.0.sise'. Did you mean 'size'? Known: size. Line 3: unknown key 'b'. Known: parts."
    )
    assert (
        told(caught.value, "f")
        == "f: parts.a.0.sise: there is no such key (given: 2); b: there is no such key (given: 1)."
    )


def test_a_value_of_several_kinds_is_told_of_once():
    """pydantic tells once for each kind. A person reads one clause, whose place is a name that can be looked up."""
    with pytest.raises(DapError) as told_:
        Recipe.parse({"guidance": {"scale": "much"}, "sampling": {"cfg_channels": 0}})
    said = str(told_.value)
    assert said.count("guidance.scale:") == said.count("sampling.cfg_channels:") == 1
    assert (
        "or the value should be 'auto' (given: 'much')" in said and "constrained" not in said and "literal" not in said
    )
