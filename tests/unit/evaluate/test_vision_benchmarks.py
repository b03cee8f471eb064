"""Benchmarks about images in their authors' layouts: asked in full, and scored as computed by hand."""

import json
import tarfile
from pathlib import Path

import pytest
from answering_double import answering_model

from mobillama.core.errors import UserError
from mobillama.evaluate.subjects import Identity
from mobillama.evaluate.verb import sights
from mobillama.evaluate.vision_evaluation import VisionRequest, evaluate_vision
from mobillama.evaluate.vision_tables import tables

LETTERS_PROMPT = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def evaluate(tmp_path, task, replies, *, sees=True, images=("right",), **options):
    """Return the result of a model that gives ``replies`` by question (or by question and image)."""

    def reply(text: str, shown: list[str]) -> str:
        question = text.removeprefix("User: ").removeprefix("\n").strip()
        for key, answer in replies.items():
            wanted, image = key if isinstance(key, tuple) else (key, None)
            if question.startswith(wanted) and (image is None or image in shown):
                return answer
        raise AssertionError(f"nobody asked {question!r} with {shown}")

    model = answering_model(reply, sees=sees)
    request = VisionRequest([task], tmp_path / "data", sights(images), **options)
    identity = Identity(name="double", identity="0" * 64, facts={"backend": "double"})
    return evaluate_vision(identity, model, request, tmp_path / "out")


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_gqa(tmp_path):
    folder = tmp_path / "data/gqa"
    questions = {
        "10": ("Is the sky dark?", "yes", "1", "verify"),
        "11": ("What is on the table?", "cup", "1", "query"),
        "12": ("What is under it?", "dog", "2", "query"),
    }
    write(
        folder / "testdev_balanced_questions.json",
        {
            key: {"question": question, "answer": answer, "imageId": image, "types": {"structural": kind}}
            for key, (question, answer, image, kind) in questions.items()
        },
    )
    for name in "12":
        write(folder / f"images/{name}.jpg", f"photo {name}")
    result = evaluate(
        tmp_path,
        "gqa",
        {
            ("Is the sky dark?", "photo 1"): "Yes.",
            ("What is on the table?", "photo 1"): "a cup",
            ("What is under it?", "photo 2"): "dog",
        },
    )
    task = result["tasks"]["gqa"]
    assert task["value"] == pytest.approx(2 / 3)
    assert task["parts"]["query"] == {"questions": 2, "accuracy": 0.5}
    log = (tmp_path / "out" / result["folder"] / task["logs"][0]).read_text().splitlines()
    assert SHORT in json.loads(log[0])["question"]


def test_textvqa_with_the_texts_read_in_the_image(tmp_path):
    folder = tmp_path / "data/textvqa"
    data = [
        {
            "question": "what brand is it?",
            "image_id": "ab",
            "question_id": 1,
            "answers": ["Coke"] * 2 + ["x"] * 8,
        }
    ]
    write(folder / "TextVQA_0.5.1_val.json", {"data": data})
    write(
        folder / "TextVQA_Rosetta_OCR_v0.2_val.json",
        {"data": [{"image_id": "ab", "ocr_tokens": ["Coke", "1l"]}]},
    )
    write(folder / "train_images/ab.jpg", "can")
    result = evaluate(
        tmp_path, "textvqa", {"What brand is it?\nReference OCR token: Coke, 1l\n" + SHORT: "coke."}
    )
    assert result["tasks"]["textvqa"]["value"] == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)


def test_mme_adds_up_both_accuracies_of_each_category(tmp_path):
    from mobillama.evaluate.vision_metrics import MME_COGNITION, MME_PERCEPTION

    folder = tmp_path / "data/MME/MME_Benchmark_release_version"
    for category in (*MME_PERCEPTION, *MME_COGNITION):
        apart = category == "artwork"
        text = "Is it A? Please answer yes or no.\tYes\nIs it B? Please answer yes or no.\tNo\n"
        for number in (1, 2):
            image = f"{category}{number}"
            write(folder / category / ("questions_answers_YN" if apart else "") / f"{number}.txt", text)
            write(folder / category / ("images" if apart else "") / f"{number}.png", image)
    # Everything right but for the second question on the first image of "count".
    replies = {("Is it B?", "count1"): "Yes", "Is it A?": "yes", "Is it B?": "No."}
    task = evaluate(tmp_path, "mme", replies)["tasks"]["mme"]
    assert task["value"] == pytest.approx(9 * 200 + (75 + 50))
    assert task["metrics"]["cognition"]["value"] == pytest.approx(4 * 200)
    assert task["metrics"]["count accuracy"]["value"] == pytest.approx(75)
    assert task["metrics"]["count accuracy+"]["value"] == pytest.approx(50)
    assert task["questions"] == 14 * 4


def test_pope(tmp_path):
    folder = tmp_path / "data/pope"
    for part in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number,
                "image": f"COCO_{number}.jpg",
                "text": f"Is there a {part} {number}?",
                "label": label,
            }
            for number, label in enumerate(("yes", "yes", "no", "no"))
        ]
        write(folder / f"coco_pope_{part}.json", "\n".join(map(json.dumps, rows)) + "\n")
    for number in range(4):
        write(folder / f"val2014/COCO_{number}.jpg", f"photo {number}")
    replies = {
        f"Is there a {part} {number}?": "Yes, there is."
        for part in ("random", "popular")
        for number in range(3)
    }
    replies |= {f"Is there a adversarial {number}?": "Yes" for number in range(4)}
    task = evaluate(tmp_path, "pope", replies | {"Is there": "No"})["tasks"]["pope"]
    assert task["value"] == pytest.approx((3 + 3 + 2) / 12)
    assert task["parts"]["random"] == {"questions": 4, "accuracy": 0.75, "yes_ratio": 0.75}
    assert task["metrics"]["random precision"]["value"] == pytest.approx(2 / 3)
    assert task["metrics"]["adversarial recall"]["value"] == 1
    assert task["metrics"]["f1"]["value"] == pytest.approx((0.8 + 0.8 + 2 / 3) / 3)


def scienceqa(folder: Path, *, images: bool) -> None:
    def problem(question, answer, image):
        return {"question": question, "choices": ["one", "two"], "answer": answer, "hint": "", "image": image}

    problems = {
        "3": problem("Which is it?", 1, None),
        "5": problem("Which is shown?", 0, "image.png"),
        "6": problem("Another?", 0, None),
        "7": problem("Training only", 0, None),
    }
    problems["6"]["hint"] = "Look up."
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["7"], "test": ["3", "5", "6", "99"]})
    if images:
        write(folder / "images/test/5/image.png", "photo 5")


ANSWERS = {
    "Which is it?\nA. one\nB. two\nAnswer with the option's letter": "B",
    ("Which is shown?", "photo 5"): "The answer is A.",
    "Context: Look up.\nAnother?\nA. one": "two",
}


def test_scienceqa_by_image_and_text(tmp_path):
    scienceqa(tmp_path / "data/scienceqa", images=True)
    task = evaluate(tmp_path, "scienceqa", ANSWERS)["tasks"]["scienceqa"]
    assert task["parts"] == {
        "text": {"questions": 2, "accuracy": 0.5},
        "image": {"questions": 1, "accuracy": 1.0},
    }
    assert task["value"] == pytest.approx(2 / 3)
    assert task["note"] is None


@pytest.mark.parametrize(
    ("sees", "why"), [(True, "its images are not here"), (False, "a model of text only")]
)
def test_scienceqa_leaves_out_what_needs_an_image_and_says_so(tmp_path, sees, why):
    scienceqa(tmp_path / "data/scienceqa", images=not sees)
    result = evaluate(tmp_path, "scienceqa", ANSWERS, sees=sees)
    task = result["tasks"]["scienceqa"]
    assert (task["questions"], task["of"]) == (2, 3)
    assert task["note"] == f"{why}: 1 questions about images are left out"


def test_a_question_longer_than_the_context_is_wrong_and_told(tmp_path, monkeypatch):
    scienceqa(tmp_path / "data/scienceqa", images=True)
    # "User: ", the question with its two lines of choices, and "Assistant:", a byte a token.
    length = len("User: \nAssistant:" + "Which is it?\nA. one\nB. two\n") + len(LETTERS_PROMPT)
    monkeypatch.setattr("answering_double.AnsweringSession.context_length", length)
    task = evaluate(tmp_path, "scienceqa", ANSWERS)["tasks"]["scienceqa"]
    assert task["value"] == 0
    assert task["note"] == "3 questions do not fit into the context and count as wrong"


def easy_vqa(folder: Path) -> None:
    questions = [
        [question, answer, number]
        for number, color in enumerate(("red", "blue", "teal"))
        for question, answer in (
            ("what shape is present?", "circle"),
            ("what color is the circle?", color),
            ("is there a red shape?", "yes" if color == "red" else "no"),
            ("is a circle present?", "yes"),
        )
    ]
    write(folder / "test/questions.json", questions)
    for number, color in enumerate(("red", "blue", "teal")):
        write(folder / f"test/images/{number}.png", color)


EASY = {
    "what shape": "circle",
    ("what color", "red"): "red",
    ("what color", "blue"): "blue",
    ("what color", "teal"): "teal",
    "what color": "red",
    ("is there a red shape?", "red"): "yes",
    "is there a red shape?": "no",
    "is a circle": "yes",
}


def test_easy_vqa_by_type_of_question_with_right_wrong_and_no_images(tmp_path):
    easy_vqa(tmp_path / "data/easy_vqa")
    tasks = evaluate(tmp_path, "easy_vqa", EASY, images=("none", "right", "shuffled"))["tasks"]
    assert list(tasks) == ["easy_vqa", "easy_vqa:shuffled", "easy_vqa:none"]
    assert tasks["easy_vqa"]["value"] == 1
    # Every image is another's, so no colour is right, and red is seen once where it is not.
    shuffled = tasks["easy_vqa:shuffled"]["parts"]
    assert (shuffled["color"]["accuracy"], shuffled["shape"]["accuracy"]) == (0, 1)
    assert shuffled["yes/no color"]["accuracy"] == pytest.approx(1 / 3)
    blind = tasks["easy_vqa:none"]["parts"]
    assert blind["color"]["accuracy"] == pytest.approx(1 / 3)
    assert blind["yes/no color"]["accuracy"] == pytest.approx(2 / 3)


def test_easy_vqa_out_of_its_archive(tmp_path):
    easy_vqa(tmp_path / "easy_vqa")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/easy_vqa.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "easy_vqa", "easy_vqa")
    assert evaluate(tmp_path, "vision", EASY)["tasks"]["easy_vqa"]["value"] == 1


def test_answers_are_taken_up_and_not_asked_again(tmp_path):
    easy_vqa(tmp_path / "data/easy_vqa")
    first = evaluate(tmp_path, "easy_vqa", EASY, limit=5)
    assert first["tasks"]["easy_vqa"]["questions"] == 5
    # A model that would now answer everything wrongly is only asked the other seven.
    wrong = dict.fromkeys(EASY, "brown")
    assert evaluate(tmp_path, "easy_vqa", wrong)["tasks"]["easy_vqa"]["value"] == pytest.approx(5 / 12)


def test_published_rows_stand_beside_the_result(tmp_path):
    from rich.console import Console

    scienceqa(tmp_path / "data/scienceqa", images=True)
    console = Console(width=160, record=True)
    console.print(tables(evaluate(tmp_path, "scienceqa", ANSWERS)))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "MobiLlama-V" in line)
    assert row.split()[-4:] == ["58.5", "53.1", "41.4", "1191.9"]


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("MME/existence/1.txt", "Is it?\tYes\n", "two lines"),
        ("gqa/testdev_balanced_questions.json", "{", "not JSON"),
        ("pope/coco_pope_random.json", "{}{}\n", "not JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path, path, content, told):
    write(tmp_path / "data" / path, content)
    with pytest.raises(UserError, match=told) as error:
        evaluate(tmp_path, Path(path).parts[0].lower(), {})
    assert Path(path).name in str(error.value)


def test_a_text_model_is_not_asked_what_it_cannot_see(tmp_path):
    easy_vqa(tmp_path / "data/easy_vqa")
    with pytest.raises(UserError, match="text only"):
        evaluate(tmp_path, "easy_vqa", EASY, sees=False)


def test_a_missing_data_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        evaluate(tmp_path, "vision", {})
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="none of the benchmarks"):
        evaluate(tmp_path, "vision", {})
    with pytest.raises(UserError, match="--images wrong"):
        evaluate(tmp_path, "vision", {}, images=("wrong",))
