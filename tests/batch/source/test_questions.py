"""Files of questions as people have them: what spreadsheets, VLMEvalKit and LLaVA write."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest
from PIL import Image

from mvw_cli.batch.items import Item
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.source.reading import hash_images, read_image
from mvw_cli.errors import BadImage, UsageProblem

QUESTION = "How many, in all?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{number}.png")
    return tmp_path


def encoded(folder: Path, number: int = 0) -> str:
    return b64encode((folder / f"{number}.png").read_bytes()).decode()


def listed(folder: Path, name: str, content: str, encoding: str = "utf-8") -> list[Item]:
    (folder / name).write_bytes(content.encode(encoding))
    return list(list_items(Source((), questions=str(folder / name))))


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("comma.csv", f'image,question\r\n0.png,"{QUESTION}"\r\n', "utf-8"),
        ("excel.csv", f'image,question\r\n0.png,"{QUESTION}"\r\n', "utf-8-sig"),
        ("europe.csv", f"image;question\r\n0.png;{QUESTION}\r\n", "utf-8-sig"),
        ("tab.tsv", f"image\tquestion\n0.png\t{QUESTION}\n", "utf-8"),
        ("unicode.tsv", f"image\tquestion\r\n0.png\t{QUESTION}\r\n", "utf-16"),
        ("tab.csv", f"image\tquestion\n0.png\t{QUESTION}\n", "utf-8"),
        ("blanks.csv", f'image, question\n0.png, "{QUESTION}"\n', "utf-8"),
        ("deleted.csv", f'image,question,\n0.png,"{QUESTION}",\n,,\n ,,\n', "utf-8"),
        ("vlmevalkit.tsv", f"index\timage_path\tquestion\n7\t0.png\t{QUESTION}\n", "utf-8"),
        ("list.jsonl", json.dumps({"images": ["0.png"], "question": QUESTION}) + "\n", "utf-8"),
    ],
)
def test_one_question_however_it_is_written(
    folder: Path, name: str, content: str, encoding: str
) -> None:
    [item] = listed(folder, name, content, encoding)
    assert item.question == QUESTION
    assert item.id == ("7" if name == "vlmevalkit.tsv" else "0.png")
    [image] = item.images
    assert read_image(image, None).image.getpixel((0, 0)) == (255, 0, 0)


def test_images_that_lie_in_the_file(folder: Path) -> None:
    """In TSV as VLMEvalKit has them, and as data URLs; ids and names never hold one."""
    rows = "".join(f"{n}\t{encoded(folder, n)}\t{QUESTION}\n" for n in (0, 1))
    table = listed(folder, "v.tsv", f"index\timage\tquestion\n{rows}")
    lines = [
        {"image": f"data:image/png;base64,{encoded(folder, 0)}", "question": QUESTION},
        {"image": ["1.png", encoded(folder, 1)], "question": QUESTION, "id": "two"},
    ]
    objects = listed(folder, "d.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert [item.id for item in (*table, *objects)] == ["0", "1", "d.jsonl#1", "two"]
    for item in (*table, *objects):
        assert max(len(str(image)) for image in item.images) < len(str(folder)) + 30
    red, blue = hash_images(table[0]), hash_images(table[1])
    assert red != blue
    # In any order: a file is read from its start again where that is needed.
    assert [hash_images(objects[1]), hash_images(objects[0])] == [blue * 2, red]
    assert hash_images(table[0]) == red
    [damaged] = listed(folder, "d.jsonl", '{"image": "data:image/png;base64,@", "question": "?"}')
    with pytest.raises(BadImage, match="Cannot read the image"):
        hash_images(damaged)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "image,question\n0.png,Are there red circles, or blue squares?\n",
            "3 cells, the header 2",
        ),
        ("image,question,question\n0.png,a,b\n", "two columns question"),
        ("picture,question\n0.png,a\n", "no column image; its columns are: picture, question"),
        ("image,question\n0.png,\n", "lacks question"),
        ("image,question\n,What?\n", "lacks image"),
        (f"picture,{'QUJD' * 1000}\n", "its columns are: picture, QUJDQUJD"),
    ],
)
def test_a_line_that_is_none_is_told_with_its_number(folder: Path, content: str, said: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        listed(folder, "q.csv", content)
    told = f"{caught.value.message}: {caught.value.cause}"
    assert said in told
    assert told.startswith("Line ") and len(told) < len(str(folder)) + 300


def test_a_question_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "q.csv").write_bytes(b"image,question\n0.png,caf\xe9?\n")
    with pytest.raises(UsageProblem) as caught:
        list(list_items(Source((), questions=str(folder / "q.csv"))))
    assert caught.value.cause == "its question is not UTF-8"
