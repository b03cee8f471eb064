"""The same conversation in every format that people keep such things in."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_images import picture

from mobillama.core.errors import UserError
from mobillama.vision.recipe import ImageSourceSection
from mobillama.vision.sources import BadRecord, records

PHOTO = picture("red", 1)
MESSAGES = [
    {"role": "user", "content": "<image>\nwhat color is it?"},
    {"role": "assistant", "content": "red"},
]
ROW = {"question": "what color is it?", "answer": "red"}


def write_llava(folder):
    (folder / "photo.png").write_bytes(PHOTO)
    turns = [{"from": "human", "value": MESSAGES[0]["content"]}, {"from": "gpt", "value": "red"}]
    item = {"id": "a", "image": "photo.png", "conversations": turns}
    (folder / "llava.json").write_text(json.dumps([item, {"id": "b", "conversations": [{"from": "cat"}]}]))


def write_jsonl(folder):
    (folder / "photo.png").write_bytes(PHOTO)
    lines = [{"id": "a", "image": "photo.png", "messages": MESSAGES}, {"id": "b", "image": "../photo.png"}]
    (folder / "jsonl.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_parquet(folder):
    images = [{"bytes": PHOTO, "path": "photo.png"}, {"bytes": None, "path": "elsewhere.png"}]
    table = pa.table({"id": ["a", "b"], "image": images, **{key: [text, text] for key, text in ROW.items()}})
    pq.write_table(table, folder / "parquet.parquet")


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_webdataset(folder):
    files = {"a.json": json.dumps(ROW).encode(), "a.png": PHOTO, "b.png": PHOTO}
    write_tar(folder / "webdataset.tar", files)


WRITERS = {
    "llava": ("llava.json", write_llava),
    "jsonl": ("jsonl.jsonl", write_jsonl),
    "parquet": ("parquet.parquet", write_parquet),
    "webdataset": ("webdataset.tar", write_webdataset),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_holds_the_same_conversation(kind, tmp_path):
    name, write = WRITERS[kind]
    write(tmp_path)
    section = ImageSourceSection(name="photos", kind=kind, paths=[name], license="CC0-1.0")
    good, bad = records(section, tmp_path)
    assert (good.id, good.messages, good.license) == ("a", MESSAGES, "CC0-1.0")
    assert [read() for _, read in good.images] == [PHOTO]
    assert isinstance(bad, BadRecord) and name in bad.where and bad.error


@pytest.mark.parametrize("kind", ["llava", "parquet", "webdataset"])
def test_a_file_cut_short_is_one_clear_line(kind, tmp_path):
    name, write = WRITERS[kind]
    write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 3])
    section = ImageSourceSection(name="photos", kind=kind, paths=[name], license="CC0-1.0")
    with pytest.raises(UserError, match=name):
        list(records(section, tmp_path))


def named_set(kind, path):
    section = ImageSourceSection(name="named", kind=kind, paths=[path.name], license="MIT")
    return list(records(section, path.parent))


# As the archive of easy-VQA words them; a colour is asked for in two ways.
EASY_QUESTIONS = [
    ("what color is the circle?", "red", "color"),
    ("what is the color of the triangle?", "teal", "color"),
    ("what is the red shape?", "circle", "shape"),
    ("what shape does the image contain?", "rectangle", "shape"),
    ("is there not a red shape in the image?", "no", "yes/no color"),
    ("does the image contain a rectangle?", "yes", "yes/no shape"),
]


def test_easy_vqa_questions_are_told_apart_by_what_they_ask_for(tmp_path):
    asked = [[question, answer, 7] for question, answer, _ in EASY_QUESTIONS]
    files = {
        "easy_vqa/train/questions.json": json.dumps(asked).encode(),
        "easy_vqa/train/images/7.png": PHOTO,
    }
    write_tar(tmp_path / "easy.tar", files)
    found = named_set("easy_vqa", tmp_path / "easy.tar")
    assert [record.category for record in found] == [kind for _, _, kind in EASY_QUESTIONS]
    assert [record.messages[1]["content"] for record in found] == [answer for _, answer, _ in EASY_QUESTIONS]


def test_every_easy_vqa_answer_is_of_the_kind_asked_for(shared_data):
    section = ImageSourceSection(name="easy", kind="easy_vqa", paths=["easy_vqa.tar.xz"], license="MIT")
    answers = {}
    for record in records(section, shared_data / "multimodal"):
        answers.setdefault(record.category, set()).add(record.messages[1]["content"])
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert answers["color"] == {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
    assert answers["yes/no shape"] == answers["yes/no color"] == {"yes", "no"}


FIGURE = {
    "image": "a.png",
    "alt": "A red square.",
    "book": "b",
    "source": "s",
    "license": "l",
    "split": "train",
}


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"split": "train", "image": "b.png"}'])
def test_a_bad_line_among_figures_is_a_bad_record(line, tmp_path):
    lines = f"{line}\n{json.dumps(FIGURE)}\n".encode()
    write_tar(tmp_path / "figures.tar", {"f/figures.jsonl": lines, "f/a.png": PHOTO})
    bad, good = named_set("figures", tmp_path / "figures.tar")
    assert isinstance(bad, BadRecord) and bad.where.endswith("figures.jsonl:1")
    assert (good.id, good.messages[1]["content"]) == ("a.png", "A red square.")


def test_damaged_questions_of_easy_vqa_are_one_clear_line(tmp_path):
    write_tar(tmp_path / "easy.tar", {"easy_vqa/train/questions.json": b"[["})
    with pytest.raises(UserError, match=r"easy\.tar: questions\.json: not JSON"):
        named_set("easy_vqa", tmp_path / "easy.tar")
