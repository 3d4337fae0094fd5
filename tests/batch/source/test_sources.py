"""Where items come from: folders, lists of paths, files of questions."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import pillow_heif
import pytest
from making import QUESTION, ids, listed, refused
from PIL import Image

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import IMAGE_SUFFIXES, Source
from mvw_cli.batch.store.worklist import WorkList
from mvw_cli.errors import MvwError
from mvw_cli.images import reading as reader


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# --- folders ---


def test_a_folder_lists_its_images_by_number(tmp_path: Path) -> None:
    touch(tmp_path, "10.png", "9.PNG", "img1.Jpeg", "img02.webp", "notes.txt", "a/1.png", ".h.png")
    assert ids(tmp_path) == ["9.PNG", "10.png", "img1.Jpeg", "img02.webp"]
    assert listed(tmp_path)[0] == Item("9.PNG", (ImageRef(f"{tmp_path}/9.PNG"),), QUESTION, None)


def test_recursive_goes_below(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "b2/x.png", "b10/x.png", "b2/c/y.gif", ".cache/h.png", "b2/._x.png")
    assert ids(tmp_path, recursive=True) == ["z.png", "b2/x.png", "b2/c/y.gif", "b10/x.png"]


def test_what_looks_like_an_image_is_what_pillow_reads_as_one() -> None:
    Image.init()
    pillow_heif.register_heif_opener()
    formats = {*reader._COMMON, *reader._FURTHER, "MPO"}  # MPO: a JPEG of several, by its decoder
    registered = {end for end, kind in Image.registered_extensions().items() if kind in formats}
    assert registered == IMAGE_SUFFIXES


def test_globs_choose_by_path_and_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.jpg", "train/3.png", "train/old/4.png", "test/5.png", "test/6.jpg")

    def chosen(**options: object) -> list[str]:
        return ids(tmp_path, recursive=True, **options)

    assert chosen(include=("*.jpg",)) == ["2.jpg", "test/6.jpg"]
    assert chosen(include=("train/*",)) == ["train/3.png", "train/old/4.png"]
    assert chosen(exclude=("train/*", "2.*")) == ["1.png", "test/5.png", "test/6.jpg"]
    assert chosen(exclude=("train",)) == ["1.png", "2.jpg", "test/5.png", "test/6.jpg"]
    assert chosen(include=("*.png", "6.*"), exclude=("old",)) == [
        *("1.png", "test/5.png", "test/6.jpg", "train/3.png"),
    ]


def test_links_are_followed_once_and_never_round(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.png", "a/deep/2.png")
    touch(tmp_path / "elsewhere", "3.png")
    (root / "b-link-to-a").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "broken.png").symlink_to(root / "nowhere")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert ids(root, recursive=True) == [
        *("broken.png", "loop.png", "a/1.png", "a/deep/2.png", "far/3.png"),
    ]


def test_several_folders_keep_their_names_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path)
    assert ids("a") == ["1.png"]
    assert ids("a", "./b/") == ["a/1.png", "./b/1.png"]


@pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/2.png")])
def test_what_is_given_twice_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    touch(tmp_path, "a/1.png", "a/b/2.png")
    monkeypatch.chdir(tmp_path)
    worklist = WorkList(list_items(Source(order, QUESTION, recursive=True)))
    assert sorted(item.id for item in worklist) == ["a/1.png", "a/b/2.png"]


# --- what is not there ---


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png")
    error = refused(tmp_path / "imagse")
    assert error.message == f"There is no {tmp_path}/imagse"
    assert error.cause == f"did you mean {tmp_path}/images?"
    assert error.hint == f"mvw batch {tmp_path}/images '{QUESTION}'"
    assert refused(tmp_path / "nothing" / "of" / "that").cause == "no such file or folder"


def test_a_folder_without_an_image_says_what_is_in_it(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.cause == "other files in it: 0"
    touch(tmp_path, "1.mov", "2.MOV", "readme")
    error = refused(tmp_path)
    assert error.message == f"There is no image in {tmp_path}"
    assert error.cause == "other files in it: 3 (2 .mov, 1 without ending)"
    assert error.hint == f"ls {tmp_path}"
    touch(tmp_path, "deep/er/1.png")
    error = refused(tmp_path)
    assert error.cause.endswith("; there are images in its subfolders")
    assert error.hint == f"mvw batch {tmp_path} '{QUESTION}' --recursive"
    error = refused(tmp_path, recursive=True, include=("*.jpg",))
    assert error.cause == "--include and --exclude leave out all of its 1"


def test_a_folder_that_may_not_be_read_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1.png", "locked/2.png")
    scandir = os.scandir

    def forbid(path: str) -> object:  # root, as whom tests may run, may read everything
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(MvwError) as caught:
        listed(tmp_path, recursive=True)
    assert caught.value.message == f"Cannot read the folder {tmp_path}/locked"
    assert caught.value.cause == "Permission denied"
    assert caught.value.hint == f"ls -ld {tmp_path}/locked"
    assert ids(tmp_path, recursive=True, exclude=("locked",)) == ["1.png"]


def test_no_question_and_nothing_to_ask_about(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    assert refused(tmp_path, question=None).message == "There is no question"
    assert refused().message == "There is nothing to ask about"


@pytest.mark.parametrize(
    ("command", "asked"), [("mvw profile", "{} Q"), ("mvw calibrate vtw --images", "Q --images {}")]
)
def test_hints_repeat_the_command_that_was_typed(tmp_path: Path, command: str, asked: str) -> None:
    touch(tmp_path, "images/1.png", "q.jsonl")
    images, questions, words = tmp_path / "images", tmp_path / "q.jsonl", tuple(command.split())
    typed = command.removesuffix(" --images")
    hint = refused(tmp_path / "imgaes", question="Q", command=words).hint
    assert hint == f"{typed} {asked.format(images)}"
    assert refused(questions, command=words).hint == f"{typed} --questions {questions}"
    hint = refused("a", "b", questions=str(questions), command=words).hint
    assert hint == f"{command} a --questions {questions}"


# --- files and lists of paths ---


def test_files_go_by_the_path_that_was_given(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "photo")
    assert ids(tmp_path / "1.png", tmp_path / "photo") == [f"{tmp_path}/1.png", f"{tmp_path}/photo"]
    assert ids(tmp_path / "1.png", tmp_path / "photo", exclude=("photo",)) == [f"{tmp_path}/1.png"]


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"a.png\n\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\r\nb.png", ["a.png", "b.png"]),
        (b"a.png\0b\nc.png\0", ["a.png", "b\nc.png"]),
        (b"caf\xe9.png", [os.fsdecode(b"caf\xe9.png")]),
    ],
)
def test_paths_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, data: bytes, paths: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    items = listed("-")
    assert [item.id for item in items] == paths
    assert [item.images[0].path for item in items] == paths
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert refused("-").cause == "it is empty"
    monkeypatch.setattr(sys, "stdin", None)
    assert refused("-").cause == "it is closed"


# --- files of questions ---


def jsonl(path: Path, *lines: object) -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_questions_from_jsonl(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "q.jsonl",
        {"image": "a.png", "question": "One?"},
        "",
        {"image": "a.png", "question": "Two?", "answer": 2},
        {"image": ["a.png", "/b.png"], "question": "Same?", "id": 7, "answer": ["no", "nein"]},
        {"image": "a.png"},
        {"image": "s3://bucket/c.png", "question": None, "id": "c", "answer": "ü"},
    )
    a = ImageRef(f"{tmp_path}/a.png")
    assert listed(questions=file) == [
        Item("a.png", (a,), "One?", None),
        Item("a.png#2", (a,), "Two?", "2"),
        Item("7", (a, ImageRef("/b.png")), "Same?", '["no", "nein"]'),
        Item("a.png#3", (a,), QUESTION, None),
        Item("c", (ImageRef("s3://bucket/c.png"),), QUESTION, "ü"),
    ]


def test_relative_paths_start_at_the_folder_given(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png")
    file = jsonl(tmp_path / "q.jsonl", {"image": "a.png"})
    assert listed(tmp_path / "images", questions=file)[0].images[0].path == (
        f"{tmp_path}/images/a.png"
    )
    assert refused(tmp_path / "imges", questions=file).message == f"There is no {tmp_path}/imges"
    assert "one folder" in refused("a", "b", questions=file).message


def test_questions_from_csv(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_bytes(
        b'\xef\xbb\xbfid,image,question,answer,more\r\n1,a.png,"What,\n""now""?",red,x\r\n'
        b",caf\xe9.png,,\r\n"
    )
    name = os.fsdecode(b"caf\xe9.png")
    assert listed(questions=str(file)) == [
        Item("1", (ImageRef(f"{tmp_path}/a.png"),), 'What,\n"now"?', "red"),
        Item(name, (ImageRef(f"{tmp_path}/{name}"),), QUESTION, None),
    ]


def test_globs_choose_among_the_images_asked_about(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", {"image": "a.png"}, {"image": "b/a.jpg"})
    assert ids(questions=file, include=("*.jpg",)) == ["b/a.jpg"]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (['{"image": "a.png"}', '{"image": '], "Line 2 .*it is no JSON: Expecting value"),
        (["[1]"], "Line 1 .*it is JSON, but no object with image and question"),
        (["[" * 100_000], "Line 1 .*it is no JSON"),
        ([{"question": "?"}], "Line 1 .*it lacks image"),
        ([{"image": []}], "Line 1 .*it lacks image"),
        ([{"image": ["a.png", 3]}], "Line 1 .*it lacks image"),
        ([{"image": "a.png", "question": " "}], "Line 1 .*its question is empty"),
        ([{"image": "a.png", "question": ["?"]}], "Line 1 .*its question is empty or no text"),
        ([], "There is no question in .*it is empty"),
    ],
)
def test_a_line_that_is_no_question(tmp_path: Path, lines: list[object], cause: str) -> None:
    error = refused(questions=jsonl(tmp_path / "q.jsonl", *lines))
    assert re.search(cause, f"{error.message} {error.cause}")


def test_a_file_of_questions_that_can_not_be_asked(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", {"image": "a.png", "question": "?"}, {"image": "a.png"})
    error = refused(questions=file, question=None)
    assert error.message == f"Line 2 of {file} is no question about an image"
    assert error.cause == "it lacks question, and there is no other question to ask"
    assert error.hint == f"sed -n 2p {file} | cut -c1-300"
    assert refused(file).hint == f"mvw batch --questions {file}"  # in the place of an image
    (tmp_path / "q.csv").write_text("file,question\na.png,?\n")
    error = refused(questions=str(tmp_path / "q.csv"))
    assert error.cause == "there is no column image; its columns are: file, question"
    assert refused(questions=str(tmp_path / "gone.jsonl")).cause == "No such file or directory"
    assert refused(questions=str(tmp_path)).cause == "Is a directory"
