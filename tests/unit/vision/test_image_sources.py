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


def write_webdataset(folder):
    with tarfile.open(folder / "webdataset.tar", "w") as archive:
        for name, data in {"a.json": json.dumps(ROW).encode(), "a.png": PHOTO, "b.png": PHOTO}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


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
