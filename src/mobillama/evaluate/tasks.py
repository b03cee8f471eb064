"""Tasks of lm-evaluation-harness: by name from the Hub, or the paper's nine from local files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tqdm import tqdm

from mobillama.core.environment import installed_version
from mobillama.core.errors import UserError, did_you_mean
from mobillama.core.hashing import canonical_json, hash_file, sha256_text

from . import local_data, paper

PAPER = "paper"
HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
YAML = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "crows_pairs_english": "crows_pairs/crows_pairs_english.yaml",
    "piqa": "piqa/piqa.yaml",
    "race": "race/race.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "winogrande": "winogrande/default.yaml",
}
MMLU = "mmlu"
MMLU_FOLDER = HARNESS_TASKS / "mmlu" / "default"


@dataclass
class TaskSet:
    """The tasks to run, the groups over them, and what their data are.

    Attributes:
        asked: the names to report, in the order they were asked for.
        notes: what differs from the paper's setting, by task.
        data: SHA-256 of each local file by its path below the data folder.
        data_identity: by task (of a group, each member) what names its data.
    """

    tasks: dict[str, ConfigurableTask]
    groups: dict[str, Group]
    asked: list[str]
    notes: dict[str, str] = field(default_factory=dict[str, str])
    data: dict[str, str] = field(default_factory=dict[str, str])
    data_identity: dict[str, str] = field(default_factory=dict[str, str])


def load(names: Sequence[str], *, data_dir: Path | None = None, num_fewshot: int | None = None) -> TaskSet:
    """Return the tasks of these names; `paper` stands for its nine.

    Arguments:
        data_dir: where the paper's benchmarks lie as files; from the Hub where not given.
        num_fewshot: worked examples in every task; the paper's number, or the task's own, if not given.

    Raises:
        UserError: no task has that name, or its files are missing.
    """
    quieten_harness()
    names = [name for asked in names for name in (paper.BY_TASK if asked == PAPER else [asked])]
    chosen = TaskSet({}, {}, list(dict.fromkeys(names)))
    if data_dir is None:
        load_from_hub(chosen)
    else:
        for name in chosen.asked:
            load_local(chosen, name, data_dir, num_fewshot)
    for name in chosen.asked:
        shots = num_fewshot
        if shots is None and name in paper.BY_TASK:
            shots = paper.BY_TASK[name].num_fewshot
        for task in leaves(chosen, name):
            if shots is not None and task.get_config("num_fewshot") != 0:
                task.set_config("num_fewshot", shots)
    return chosen


def quieten_harness() -> None:
    """Silence what the harness says of its defaults at length, and its bars; ours say what matters."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    # lm-eval 0.4.13 compiles a template anew for every field of every document, which takes minutes.
    environment: Any = lm_eval.utils.env
    if not hasattr(environment.from_string, "cache_info"):
        environment.from_string = cache(environment.from_string)


def leaves(chosen: TaskSet, name: str) -> list[ConfigurableTask]:
    """Return the tasks that `name`, a task or a group, stands for."""
    group: Any = chosen.groups.get(name)
    return group.get_all_tasks() if group is not None else [chosen.tasks[name]]


def load_from_hub(chosen: TaskSet) -> None:
    """Load the tasks asked for by the harness's own names, downloading their data."""
    manager = TaskManager()
    known = manager.all_tasks
    for name in list(chosen.asked):
        if name not in known:
            raise UserError(f"--tasks {name}: lm-eval has no such task{did_you_mean(name, known)}")
        try:
            loaded: Any = manager.load([name])
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{name}: its data cannot be loaded ({reason}); give --data-dir with its files"
            ) from error
        chosen.tasks |= loaded["tasks"]
        chosen.data_identity |= {member: fingerprint(task) for member, task in loaded["tasks"].items()}
        chosen.groups |= loaded.get("groups", {})
        if name not in loaded["tasks"] and name not in loaded.get("groups", {}):  # a tag
            place = chosen.asked.index(name)
            chosen.asked[place : place + 1] = list(loaded["tasks"])


def fingerprint(task: ConfigurableTask) -> str:
    """Return what names a task's downloaded questions."""
    documents: Any = task.eval_docs
    return str(getattr(documents, "_fingerprint", len(documents)))


def load_local(chosen: TaskSet, name: str, data_dir: Path, num_fewshot: int | None) -> None:
    """Load one of the paper's benchmarks from files below `data_dir`."""
    if name not in paper.BY_TASK:
        raise UserError(
            f"--tasks {name}: with --data-dir only the paper's benchmarks run"
            f"{did_you_mean(name, paper.BY_TASK) or '; they are ' + ', '.join(paper.BY_TASK)}"
        )
    benchmark = paper.BY_TASK[name]
    folder = data_dir / benchmark.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; {benchmark.title} needs its files there")
    files = {
        path.relative_to(data_dir).as_posix(): hash_file(path).sha256
        for path in local_data.data_files(folder)
    }
    chosen.data |= files
    if name == MMLU:
        group: Any = mmlu_group(folder)
        chosen.groups |= {found.name: found for found in (group, *group.get_all_groups())}
        chosen.tasks |= {task.task_name: task for task in group.get_all_tasks()}
        chosen.data_identity |= {task.task_name: canonical_json(files) for task in group.get_all_tasks()}
        return
    chosen.data_identity[name] = canonical_json(files)
    splits = local_data.READERS[name](folder)
    overrides, note = example_pool(
        name, splits, benchmark.num_fewshot if num_fewshot is None else num_fewshot
    )
    if note:
        chosen.notes[name] = note
    chosen.tasks[name] = build(HARNESS_TASKS / YAML[name], lambda: splits, overrides)


def build(
    definition: Path, read: Callable[[], Mapping[str, list[dict[str, Any]]]], overrides: Mapping[str, Any]
) -> ConfigurableTask:
    """Return a task by the harness's own definition, with its data from `read`."""

    def local(**_: Any) -> dict[str, datasets.Dataset]:
        return {split: datasets.Dataset.from_list(rows) for split, rows in read().items()}

    config = {**load_yaml(definition), "custom_dataset": local, **overrides}
    config.pop("tag", None)
    return ConfigurableTask(config=config)


def example_pool(name: str, splits: local_data.Splits, shots: int) -> tuple[dict[str, Any], str]:
    """Return how worked examples are drawn where the training file is too small for them, and a note of it.

    They come from the questions asked, never the one itself: lm-eval's rule for tasks without a
    training split.
    """
    config = load_yaml(HARNESS_TASKS / YAML[name])
    train = config.get("training_split")
    if train is None or len(splits.get(train, [])) > shots:
        return {}, ""
    asked = config.get("test_split") or config["validation_split"]
    overrides = {
        "training_split": None,
        "validation_split": None,
        "test_split": asked,
        "fewshot_split": asked,
    }
    if not shots:
        return overrides, ""
    return overrides, (
        f"its training file has {len(splits.get(train, []))} rows, too few for {shots} examples: they are "
        "drawn from the other questions"
    )


def mmlu_group(folder: Path) -> Group:
    """Return MMLU as the harness groups it: four areas of 57 subjects, weighted by their questions."""
    weighting = [AggMetricConfig(metric="acc", weight_by_size=True)]
    areas: dict[str, Group] = {}
    for definition in sorted(MMLU_FOLDER.glob("mmlu_*.yaml")):
        config = load_yaml(definition)
        area = config["tag"].removesuffix("_tasks")
        group = areas.setdefault(area, Group(area, aggregate_metric_list=weighting))
        group.add(build(definition, partial(local_data.mmlu, folder, config["dataset_name"]), {}))
    whole = Group(MMLU, aggregate_metric_list=weighting)
    for area in areas.values():
        whole.add(area)
    return whole


def definition_of(task: ConfigurableTask) -> str:
    """Return a hash of everything that defines a task's requests, but for its data."""
    config = {
        # A function is spelled with its address, which is another one in every process.
        key: re.sub(r" at 0x[0-9a-f]+", "", str(value))
        for key, value in task.dump_config().items()
        if key not in ("custom_dataset", "metadata")
    }
    return sha256_text(canonical_json([installed_version("lm_eval"), config]))
