"""Writes are atomic, and errors name file, line and found value."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax import io
from ixjax.io import InputError, Manifest, RunDirectory

SCHEMA = "ixjax.toy"


def refused(text: str):
    return pytest.raises(InputError, match=re.escape(text))


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    io.write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        io.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_that_fail_half_way_leave_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    io.write_jsonl(path, [{"n": 1}], schema=SCHEMA)

    def records():
        yield {"n": 2}
        raise RuntimeError("search died")

    with pytest.raises(RuntimeError, match="search died"):
        io.write_jsonl(path, records(), schema=SCHEMA)
    assert list(io.read_jsonl(path, schema=SCHEMA)) == [{"n": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path):
    io.write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert io.read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}


# UTF-8 can't hold lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(TEXTS, JSON, max_size=3), max_size=4))
def test_jsonl_reads_back_what_was_written(tmp_path_factory, records):
    """Texts may hold line separators such as U+2028, which do not end a line of JSONL."""
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    io.write_jsonl(path, records, schema=SCHEMA)
    assert list(io.read_jsonl(path, schema=SCHEMA)) == records


def test_the_first_line_names_schema_and_version(tmp_path):
    path = tmp_path / "a.jsonl"
    io.write_jsonl(path, [{"n": 1}], schema=SCHEMA)
    assert path.read_text().splitlines() == ['{"schema": "ixjax.toy", "version": 1}', '{"n": 1}']
    io.write_jsonl(path, [{"n": 1}], schema=None)
    assert path.read_text().splitlines() == ['{"n": 1}']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "ixjax.pairs", "version": 1}\n', ":1: expected schema ixjax.toy version 1, "
         "found 'ixjax.pairs' version 1"),
        ('{"schema": "ixjax.toy", "version": 2}\n', ":1: expected schema ixjax.toy version 1, "
         "found 'ixjax.toy' version 2"),
        ('{"n": 1}\n', ":1: expected schema ixjax.toy version 1, found None version None"),
        ('{"schema": "ixjax.toy", "version": 1}\n\n{"n": 1\n', ":3: not JSON (column "),
        ('{"schema": "ixjax.toy", "version": 1}\n[1]\n', ":2: expected a JSON object, found list"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with refused(f"{path}{message}"):
        list(io.read_jsonl(path, schema=SCHEMA))


def test_a_file_without_a_schema_line_is_refused_even_below_a_blank_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"n": 1}\n')
    with refused(f"{path}:2: expected schema ixjax.toy version 1, found None version None"):
        list(io.read_jsonl(path, schema=SCHEMA))


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_of_ours_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with refused(f"{path}: empty; expected schema ixjax.toy version 1"):
        list(io.read_jsonl(path, schema=SCHEMA))


def test_what_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "no.json", tmp_path / "no" / "no.json"):
        with refused(f"{path}: no such file"):
            io.read_json(path)
    with refused(f"{tmp_path}: a folder; expected a file"):
        io.read_json(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert io.read_json(tmp_path / "a.json") == {"a": 1}


def test_files_have_the_permissions_of_other_new_files(tmp_path):
    (tmp_path / "plain").touch()
    io.write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'"caf\xe9"')
    with refused(f"{path}:1: not UTF-8 text (byte 4)"):
        io.read_json(path)


def test_a_folder_where_a_file_is_to_be_written_and_the_reverse_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with refused(f"{tmp_path / 'folder'}: a folder; expected a file"):
        io.write_text(tmp_path / "folder", "x")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a"):
        with refused(f"{tmp_path / 'file'}: a file; expected a folder"):
            io.write_text(path, "x")


def test_a_document_that_is_not_json_is_named_by_line_and_column(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n  "a": 1,\n  b: 2\n}')
    with refused(f"{path}:3: not JSON (column 3: Expecting property name"):
        io.read_json(path)


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_appended_lines_follow_each_other(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    for step in range(3):
        io.append_jsonl(path, {"step": step})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    inner: Inner = Inner()
    name: str = "a"


def test_a_fingerprint_changes_with_every_part():
    different = [
        (), ("a",), ("b",), ("a", "b"), ("ab",), ("a", b"b"), (b"ab",), (["a", "b"],), (1,), (1.5,),
        (Settings(),), (Settings(name="b"),), (Settings(Inner(0.2)),), ([Settings()],),
        ({"x": 1},), ({"x": 2},), (Path("c"),), (None,),
    ]  # fmt: skip
    found = [io.fingerprint(*parts) for parts in different]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in found)


def test_a_fingerprint_is_the_same_for_the_same_parts():
    assert io.fingerprint(Settings(), [Path("a")]) == io.fingerprint(Settings(), (Path("a"),))
    assert io.fingerprint({"x": 1, "y": 2}) == io.fingerprint({"y": 2, "x": 1})
    # From sha256sum of the bytes: a fingerprint outlives the process, and the machine.
    assert io.fingerprint("ixjax", 1) == "d445a564d30e430a"


def test_fingerprints_of_files_and_folders_change_with_content_and_name(tmp_path):
    folder = tmp_path / "folder"
    io.write_text(folder / "a" / "x", "one")
    first, alone = io.folder_fingerprint(folder), io.file_fingerprint(folder / "a" / "x")
    assert io.folder_fingerprint(folder / "a" / "x") == alone
    io.write_text(folder / "a" / "x", "two")
    second = io.folder_fingerprint(folder)
    assert io.file_fingerprint(folder / "a" / "x") != alone
    (folder / "a" / "x").rename(folder / "a" / "y")
    third = io.folder_fingerprint(folder)
    assert len({first, second, third}) == 3
    (folder / "a" / "y").rename(folder / "a" / "x")
    io.write_text(folder / "a" / "x", "one")
    assert io.folder_fingerprint(folder) == first


def test_a_manifest_remembers_what_a_stage_was_made_from(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = Manifest.load(path)
    assert not manifest.is_done("sft", "abc")
    assert manifest.get("sft") is None
    manifest.record("sft", "abc", seconds=1.5)
    manifest.record("search", "def")
    again = Manifest.load(path)
    assert again.is_done("sft", "abc")
    assert not again.is_done("sft", "abd")
    assert again.get("sft") == {"inputs": "abc", "seconds": 1.5}
    again.record("sft", "abd")
    assert not Manifest.load(path).is_done("sft", "abc")
    assert Manifest.load(path).is_done("search", "def")


@pytest.mark.parametrize("content", ["[]", "{}", '{"stages": []}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with refused(f"{path}: expected an object with `stages`; the manifest is damaged"):
        Manifest.load(path)


def test_everything_of_a_run_lies_in_its_folder_under_its_own_name():
    run = RunDirectory(Path("run"))
    names = [name for name, part in vars(RunDirectory).items() if isinstance(part, property)]
    paths = [getattr(run, name) for name in names]
    assert all(Path("run") in path.parents for path in paths)
    assert len(set(paths)) == len(names) > 10


def test_a_line_that_was_cut_off_stays_alone_in_a_log(tmp_path):
    path = tmp_path / "log.jsonl"
    io.append_jsonl(path, {"said": "höher"})
    io.append_jsonl(path, {"n": 2})
    for cut in range(1, len(path.read_bytes())):
        torn = tmp_path / f"{cut}.jsonl"
        torn.write_bytes(path.read_bytes()[:-cut])
        io.append_jsonl(torn, {"n": 3})
        left: list[int] = []
        found = [record for _, record in io.read_json_lines(torn, torn=left)]
        assert found[-1] == {"n": 3}
        assert len(found) + len(left) == len(torn.read_text().splitlines())
        assert len(left) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a JSON object, found list"),
        ('{"schema": "ixjax.toy", "version": 99}', "version 1, found 'ixjax.toy' version 99"),
        ('{"schema": "\\u001b[2J", "version": 1}', r"found '\x1b[2J' version 1"),
        ("{}", "expected schema ixjax.toy version 1, found None version None"),
    ],
)
def test_a_document_of_another_schema_or_version_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with refused(message) as error:
        io.read_document(path, schema=SCHEMA)
    assert str(error.value).startswith(f"{path}: ")
