"""The nine benchmarks from the real files: complete, and scored right for models whose answers are known.

The gold answers are read from the files here once more, by code of this file alone.
"""

import csv
import io
import json
import lzma
import random
import tarfile
from types import FunctionType

import pytest

from mobillama.core.errors import UserError
from mobillama.evaluate import local_data, paper, tasks
from mobillama.evaluate.evaluation import Judged, describe_task, main_metric

LETTERS = "ABCDE"


def jsonl(path):
    text = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode()
    return [json.loads(line) for line in text.strip().split("\n")]


def hellaswag(folder):
    return [(int(row["label"]), 4) for row in jsonl(folder / "hellaswag_val.jsonl.xz")]


def mmlu(folder):
    golds = []
    with tarfile.open(folder / "mmlu_csv.tar.xz") as archive:
        for name in sorted(name for name in archive.getnames() if name.endswith("_test.csv")):
            rows = csv.reader(io.StringIO(archive.extractfile(name).read().decode()))
            golds += [(LETTERS.index(row[5]), 4) for row in rows]
    return golds


def arc(folder):
    golds = []
    for row in jsonl(folder / "ARC-Challenge-Test.jsonl"):
        labels = [choice["label"] for choice in row["question"]["choices"]]
        golds.append((labels.index(row["answerKey"]), len(labels)))
    return golds


def crows(folder):
    with (folder / "crows_pairs_anonymized.csv").open(newline="") as file:
        return [(0, 2) for _ in csv.DictReader(file)]


def piqa(folder):
    return [(int(label), 2) for label in (folder / "valid-labels.lst").read_text().split()]


def race(folder):
    return [(LETTERS.index(row["answers"][-1]), 4) for row in jsonl(folder / "test_high.jsonl.xz")]


def social_iqa(folder):
    return [(int(label) - 1, 3) for label in (folder / "dev-labels.lst").read_text().split()]


def winogrande(folder):
    return [(int(label) - 1, 2) for label in (folder / "dev-labels.lst").read_text().split()]


GOLDS = {
    "hellaswag": (hellaswag, 10042),
    "mmlu": (mmlu, 14042),
    "arc_challenge": (arc, 1172),
    "crows_pairs_english": (crows, 1508),
    "piqa": (piqa, 1838),
    "race": (race, 1045),
    "social_iqa": (social_iqa, 1954),
    "winogrande": (winogrande, 1267),
}
LARGE = {"hellaswag", "mmlu"}
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in GOLDS]


@pytest.fixture(scope="module")
def data_dir(shared_data):
    return shared_data / "benchmarks"


def scored(name, data_dir, prefer):
    """Return a benchmark's score in its metric for a model that gives each choice what `prefer` says.

    `prefer(number, index)` is the preference for choice `index` of question `number`, per character
    where the metric divides by length.
    """
    chosen = tasks.load([name], data_dir=data_dir)
    metric = paper.BY_TASK[name].metric
    values, number = [], 0
    for task in sorted(tasks.leaves(chosen, name), key=lambda task: task.task_name):
        for _, document in task.doc_iterator():
            choices = task.doc_to_choice(document)
            lengths = [len(choice) if metric == "acc_norm" else 1 for choice in choices]
            answers = [(prefer(number, index) * length, False) for index, length in enumerate(lengths)]
            values.append(task.process_results(document, answers)[metric])
            number += 1
    judged = Judged(task, "", {metric: values}, len(values), 0)
    description = describe_task(judged)
    assert main_metric(name, description["metrics"]) == metric
    return description


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_is_complete_and_its_answers_are_the_files(name, data_dir):
    read, questions = GOLDS[name]
    golds = read(data_dir / paper.BY_TASK[name].folder)
    assert len(golds) == questions
    oracle = scored(name, data_dir, lambda number, index: 0.0 if index == golds[number][0] else -9.0)
    assert (oracle["value"], oracle["questions"]) == (1.0, questions)
    wrong = [(gold + 1) % choices for gold, choices in golds]
    fixed = scored(name, data_dir, lambda number, index: 0.0 if index == wrong[number] else -9.0)
    assert fixed["value"] == 0.0
    source = random.Random(name)
    uniform = scored(name, data_dir, lambda number, index: -source.random())
    chance = sum(1 / choices for _, choices in golds) / questions
    assert abs(uniform["value"] - chance) < 3.5 * uniform["standard_error"]


def test_truthfulqa_is_the_mass_on_true_answers(data_dir):
    rows = json.loads((data_dir / "truthfulqa" / "v1" / "mc_task.json").read_text())
    labels = [list(row["mc2_targets"].values()) for row in rows]
    assert len(labels) == 817

    def score(prefer):
        return scored("truthfulqa_mc2", data_dir, prefer)["value"]

    assert score(lambda number, index: 0.0 if labels[number][index] else -99.0) == 1.0
    assert score(lambda number, index: -99.0 if labels[number][index] else 0.0) == pytest.approx(0)
    share = sum(sum(row) / len(row) for row in labels) / len(labels)
    assert score(lambda number, index: -1.0) == pytest.approx(share)


def test_prompts_are_the_harness_own(data_dir):
    chosen = tasks.load(["piqa", "social_iqa", "arc_challenge"], data_dir=data_dir)
    for task in chosen.tasks.values():
        task.set_fewshot_seed(1234)
        task.build_all_requests(limit=1)
    prompts = {name: task.instances[0].args for name, task in chosen.tasks.items()}
    assert prompts["piqa"][0] == "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:"
    assert prompts["social_iqa"] == (
        "Q: Tracy didn't go home that evening and resisted Riley's attacks. "
        "What does Tracy need to do before this?\nA:",
        " make a new plan",
    )
    assert prompts["arc_challenge"][0].count("Question:") == 26


def test_a_task_is_called_the_same_in_every_process(data_dir):
    task = tasks.load(["hellaswag"], data_dir=data_dir).tasks["hellaswag"]
    before, examples = tasks.definition_of(task), task.config.fewshot_config
    function = examples.process_docs
    examples.process_docs = FunctionType(function.__code__, function.__globals__)  # elsewhere in memory
    assert str(examples.process_docs) != str(function)
    assert tasks.definition_of(task) == before


def test_hellaswag_begins_its_sentence_as_the_harness_does():
    rows = [
        {"ctx": "A man is sitting on a roof. he", "label": 3},
        {"ctx": "How to bake. Mix it well.", "label": 1},
    ]
    parted = [local_data.part_context(row) for row in rows]
    assert [(row["ctx_a"], row["ctx_b"]) for row in parted] == [
        ("A man is sitting on a roof.", "he"),
        ("How to bake. Mix it well.", ""),
    ]


def test_examples_never_contain_the_question_where_they_come_from_the_questions(data_dir, monkeypatch):
    rows = [
        {"activity_label": "X", "ctx": f"Number {number}.", "endings": list("abcd"), "label": 0}
        for number in range(12)
    ]
    splits = {"validation": [], "train": []}
    splits["validation"] = [{**local_data.part_context(row), "label": "0"} for row in rows]
    monkeypatch.setitem(local_data.READERS, "hellaswag", lambda folder: splits)
    chosen = tasks.load(["hellaswag"], data_dir=data_dir)
    task = chosen.tasks["hellaswag"]
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    for number, instance in enumerate(task.instances[::4]):
        assert instance.args[0].count("Number") == 11
        assert instance.args[0].count(f"Number {number}.") == 1
    assert "too few for 10 examples" in chosen.notes["hellaswag"]


@pytest.mark.parametrize(
    ("names", "folder", "said"),
    [
        (["piqua"], "", "did you mean piqa"),
        (["piqa"], "nowhere", "no such directory"),
        (["gsm8k"], "", "only the paper's benchmarks"),
    ],
)
def test_what_is_not_there_is_named(data_dir, names, folder, said):
    with pytest.raises(UserError, match=said):
        tasks.load(names, data_dir=data_dir / folder)


def test_labels_that_do_not_fit_their_rows_stop(tmp_path):
    (tmp_path / "dev.jsonl").write_text('{"context": "x"}\n{"context": "y"}\n')
    (tmp_path / "dev-labels.lst").write_text("1\n")
    with pytest.raises(UserError, match="1 labels for 2 rows"):
        local_data.social_iqa(tmp_path)
