"""The gallery: one self-contained page of what was seen, asked and said, wrong answers first."""

import json
import re

import numpy as np
import pytest
import torch
from fixture_seeing import write_seeing_checkpoint
from PIL import Image

from mobillama.cli import main
from mobillama.evaluate.vision_data import VisionItem
from mobillama.evaluate.vision_gallery import chosen, write_gallery
from mobillama.vision.gradient_map import gradient_map
from mobillama.vision.opening import open_model

STEP = 1e-2


def answers(rights: str, parts: str):
    return [
        (VisionItem(number, f"question {number}", "yes", part), {"scores": {"accuracy": float(right == "r")}})
        for number, (right, part) in enumerate(zip(rights, parts, strict=True))
    ]


def test_wrong_answers_come_first_and_take_half_at_most():
    shown = chosen(answers("rwrwwwrrrr", "aabbaabbab"), 6)
    wrong = [entry["scores"]["accuracy"] == 0 for _, entry in shown]
    assert wrong == [True] * 3 + [False] * 3
    assert len(chosen(answers("rrr", "aaa"), 6)) == 3


def test_parts_take_turns():
    shown = chosen(answers("r" * 12, "a" * 10 + "bb"), 4)
    assert sorted(item.part for item, _ in shown) == ["a", "a", "b", "b"]


def test_the_page_shows_each_answer_and_loads_nothing(tmp_path):
    write_seeing_checkpoint(tmp_path / "checkpoint", conv=True)
    model = open_model(tmp_path / "checkpoint")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    item = VisionItem(0, "is it <b>red</b>?", "yes", "color", tmp_path / "red.png", "red")
    tasks = {
        "easy_vqa": {
            "metric": "accuracy",
            "value": 0.5,
            "questions": 2,
            "parts": {"color": {"questions": 2, "accuracy": 0.5}},
        }
    }
    shown = [
        (item, {"responses": [said], "scores": {"accuracy": float(said == "yes")}}) for said in ("no", "yes")
    ]
    page = write_gallery(model, ("tiny", "easy-VQA"), tasks, shown, tmp_path / "gallery.html").read_text()
    assert "<script" not in page and not re.search(r"(src|href)=\"(?!data:)", page)
    assert "is it &lt;b&gt;red&lt;/b&gt;?" in page
    assert page.count('class="picture') == 2 and page.count("✗ gold: yes") == 1
    assert page.count('<img class="map"') == 2
    assert "50.00 %" in page


def test_open_shows_the_page_in_a_browser(tmp_path, monkeypatch):
    write_seeing_checkpoint(tmp_path / "checkpoint", conv=True)
    files = tmp_path / "easy_vqa" / "test"
    (files / "images").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(files / "images" / "0.png")
    (files / "questions.json").write_text(json.dumps([["is there a red shape?", "yes", 0]]))
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    words = ["evaluate", str(tmp_path / "checkpoint"), "--tasks", "easy_vqa", "--data-dir", str(tmp_path)]
    for more in ([], ["--open"]):
        monkeypatch.setattr("sys.argv", ["mobillama", *words, "--out", str(tmp_path / "out"), *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code and len(shown) == len(more)
    (page,) = (tmp_path / "out").glob("*/gallery-easy_vqa.html")
    assert shown == [page.as_uri()]


def test_the_map_is_the_gradient_of_the_answer(tmp_path):
    """Against difference quotients at two pixels; norms and rotary angles are in float32, so no finer."""
    model = write_seeing_checkpoint(tmp_path / "checkpoint", conv=True).double()
    square = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    prompt, answer = [0, 5, 320, 9, 7], [11, 4]
    weights = gradient_map(model, square, prompt, answer)
    assert weights.shape == (32, 32) and weights.max() == 1

    def score(pixels: np.ndarray) -> float:
        ids = [*prompt, *answer]
        place = ids.index(320)
        ids[place : place + 1] = [320] * model.config.image_seq_length
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(pixels[None].astype(np.float64))
            ).logits[0]
        scores = logits.log_softmax(-1)
        return sum(float(scores[len(ids) - 3 + n, token]) for n, token in enumerate(answer))

    def slope(row: int, column: int) -> float:
        slopes = []
        for channel in range(3):
            moved = [square.astype(np.float64).copy() for _ in range(2)]
            moved[0][channel, row, column] += STEP
            moved[1][channel, row, column] -= STEP
            slopes.append(abs(score(moved[0]) - score(moved[1])) / (2 * STEP))
        return max(slopes)

    order = np.argsort(weights, axis=None)
    middle, other = (np.unravel_index(order[place], weights.shape) for place in (700, 300))
    assert np.isclose(weights[middle] / weights[other], slope(*middle) / slope(*other), rtol=0.03)
