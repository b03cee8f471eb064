"""A model learns to see through the same loop, ledger and records as text does."""

import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_images import picture, recipe, write_pictures
from transformers import LlavaForConditionalGeneration

from mobillama import report
from mobillama.core import config
from mobillama.core.errors import UserError
from mobillama.core.records import manifest_hash, read_jsonl, read_manifest, sealed
from mobillama.lineage import kinds, seen_images
from mobillama.lineage.replay import replay
from mobillama.lineage.verify import check
from mobillama.train import last_checkpoint, train
from mobillama.train.checkpoints import Store
from mobillama.train.precision import Precision
from mobillama.vision.batches import measure_heldout
from mobillama.vision.image_set import ImageSet
from mobillama.vision.images import ImageRules
from mobillama.vision.opening import open_model
from mobillama.vision.preparation import prepare_images
from mobillama.vision.samples import IGNORED, ImageSamples


def begin(folder, **parts):
    loaded = recipe(folder, **parts)
    if not loaded.recipe.images.directory.exists():
        prepare_images(loaded.recipe.images)
    return loaded


def run(folder, **parts):
    loaded = begin(folder, **parts)
    return train(loaded, kinds.work_of(loaded.recipe))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(write_pictures(tmp_path_factory.mktemp("pictures")))


def weights(run, step):
    return load_file(Store(run).checkpoint(step) / "model.safetensors")


def test_a_run_is_recorded_and_its_checkpoint_is_a_llava(trained):
    metrics = read_jsonl(trained / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5
    told = read_jsonl(trained / "evaluations.jsonl")[-1]
    assert set(told["subsets"]) == {"color", "yes/no"} and told["whole"]
    model = LlavaForConditionalGeneration.from_pretrained(last_checkpoint(trained))
    held = weights(trained, 12)
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items() if name in held)
    assert sum(".ffns." in name for name in held) == 3  # the shared FFN, once
    assert ImageRules.read(last_checkpoint(trained)).tokens == 16


def test_the_report_tells_the_answers_and_leads_to_their_gallery(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    task = {"metric": "accuracy", "value": 0.5, "questions": 2, "of": 2, "num_fewshot": 0}
    result = {
        "kind": "evaluation",
        "model": {"backend": "torch", "step": 12},
        "finished_at": "2026-11-25T00:00:00Z",
        "tasks": {"easy_vqa": task | {"gallery": "here/gallery-easy_vqa.html"}},
    }
    (run / "evaluations").mkdir()
    (run / "evaluations" / "here.vision.json").write_text(json.dumps(result | sealed(result)))
    page = report.write(run).read_text(encoding="utf-8")
    told = read_jsonl(run / "evaluations.jsonl")[-1]
    assert f"{100 * told['exact']:.2f} %" in page and "bits per byte" not in page.partition("<script")[0]
    for row in told["subsets"].values():
        assert f'<b>{100 * row["exact"]:.2f}</b></td><td class="n">{row["nats_per_token"]:.3f}' in page
    assert '<a href="evaluations/here/gallery-easy_vqa.html">gallery</a>' in page


def test_a_run_is_asked_with_the_tokens_it_learnt(trained):
    example = next(ImageSet(kinds.history_of(trained).recipe.images.directory).examples("heldout"))
    learnt = samples_of(trained).set.heldout.spelled(0)
    asked = {**example.messages[0], "images": [example.images[0].name]}
    prompt = open_model(trained).chat_prompt([asked])
    assert (
        prompt == learnt.ids[~learnt.answers].tolist() and prompt[0] == samples_of(trained).set.end_of_text_id
    )


def test_stopping_and_going_on_gives_the_same_bits(trained, tmp_path):
    first = begin(write_pictures(tmp_path), train={"max_steps": 12})
    work = kinds.work_of(first.recipe)
    train(first, work)
    for folder in ("checkpoints", "states"):
        for step in (8, 12):
            shutil.rmtree(first.recipe.run_dir / folder / f"step-{step:08d}")
    again = train(first, work)
    ours, theirs = weights(again, 12), weights(trained, 12)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_replay_is_equal_bit_for_bit(trained):
    outcome = replay(trained, 4, 8)
    assert outcome.equal and outcome.tensors > 0


def test_everything_of_a_run_verifies(trained):
    found = check(trained)
    assert not found.problems and any(record["kind"] == "images" for record in found.artifacts.values())


def test_what_a_step_saw_and_when_an_image_was_seen_agree(trained):
    history = kinds.history_of(trained)
    by_step = {step: seen_images.seen(history, step) for step in range(1, 13)}
    name = by_step[5][0][1].images[0].name
    expected = {
        (example.id, step)
        for step, samples in by_step.items()
        for _, example in samples
        if example.images[0].name == name
    }
    file = history.recipe.images.root / name
    for asked in (name, str(file), hashlib.sha256(file.read_bytes()).hexdigest()[:12]):
        found = seen_images.find_image(history, asked)
        assert {(one.example.id, step) for one in found for step in one.steps} == expected
    with pytest.raises(UserError, match="no image or conversation"):
        seen_images.find_image(history, "nothing.png")


def test_no_held_out_image_is_trained_on(trained):
    images = ImageSet(kinds.history_of(trained).recipe.images.directory)
    held, learnt = (
        {one.images[0].sha256 for one in images.examples(split)} for split in ("heldout", "train")
    )
    assert held and learnt and not held & learnt
    assert len(held) + len(learnt) == 40


def test_a_flipped_bit_in_an_image_is_told(trained, tmp_path):
    copied = shutil.copytree(trained.parent, tmp_path / "all")
    shard = copied / "images" / "images" / "00000.data"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    loaded = recipe(copied, run_dir=copied / "another")
    with pytest.raises(UserError, match=r"00000\.data"):
        train(loaded, kinds.work_of(loaded.recipe))


def samples_of(trained, **data):
    loaded = recipe(trained.parent, data={"sequence_length": 48, **data})
    rules = ImageRules.read(last_checkpoint(trained))
    images = ImageSet(loaded.recipe.images.directory)
    return ImageSamples(images, loaded.recipe.data, rules, seed=3, step=8)


def test_an_epoch_takes_every_sample_once_and_finds_it_again(trained):
    for groups in (1, 3):
        samples = samples_of(trained, length_groups=groups)
        count = samples.samples_per_epoch // 24 * 24
        rows = samples.locate(np.arange(count))
        assert len(set(rows.tolist())) == count
        assert all(samples.indices_of(int(row), until=count) == [index] for index, row in enumerate(rows))


def test_length_groups_leave_less_to_pad(trained):
    def padding(groups):
        samples = samples_of(trained, length_groups=groups)
        steps = [samples.lengths[samples.locate(np.arange(first, first + 8))] for first in range(0, 48, 8)]
        return sum(int((lengths.max() - lengths).sum()) for lengths in steps)

    assert padding(6) < padding(1)


def test_phases_come_first_and_their_samples_are_found_again(trained):
    phases = [{"samples": 16, "weights": {"color": 1}}, {"samples": 8, "weights": {"yes/no": 1}}]
    samples = samples_of(trained, phases=phases, length_groups=1)
    told = [example.category for example in samples.examples(np.arange(40))]
    assert told[:16] == ["color"] * 16 and told[16:24] == ["yes/no"] * 8 and len(set(told[24:])) == 2
    for index, row in enumerate(samples.locate(np.arange(24)).tolist()):
        assert index in samples.indices_of(row, until=24)
    with pytest.raises(UserError, match="no category colour; did you mean color"):
        samples_of(trained, weights={"colour": 1})


def test_labels_count_answers_only_and_predict_the_next_token(trained):
    samples = samples_of(trained)
    batch = samples.fetch(np.arange(4))
    for row, place in enumerate(samples.locate(np.arange(4)).tolist()):
        answer = samples.set.example("train", place).messages[-1]["content"]
        counted = np.flatnonzero(batch["labels"][row] != IGNORED)
        spoken = samples.set.train.spelled(place)
        assert batch["labels"][row][counted].tolist() == spoken.ids[spoken.answers].tolist()
        assert (np.diff(counted) == 1).all() and len(answer) >= 2
        assert (batch["input_ids"][row] == samples.set.image_id).sum() == 16
        assert batch["input_ids"][row][counted[1:]].tolist() == batch["labels"][row][counted[:-1]].tolist()


def test_frozen_parts_stay_and_a_second_stage_starts_where_the_first_ended(trained, tmp_path):
    first = last_checkpoint(trained)
    values = recipe(trained.parent).recipe.model_dump(exclude_unset=True)
    values["model"], values["run_dir"] = {"start_from": first}, tmp_path / "stage"
    values["learn"] = {"tower": False, "language": False}
    loaded = config.Loaded(kinds.VisionRecipe.model_validate(values), {})
    stage = train(loaded, kinds.work_of(loaded.recipe))
    before, after = weights(trained, 12), weights(stage, 12)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".multi_modal_projector." in name}
    assert read_manifest(Store(stage).checkpoint(4))["parent"] == manifest_hash(first)


def stage_of(trained, folder, learn, **parts):
    """A second stage on the same pictures, from where ``trained`` ended."""
    values = recipe(trained.parent, **parts).recipe.model_dump(exclude_unset=True)
    values["model"], values["run_dir"] = {"start_from": last_checkpoint(trained)}, folder
    values["learn"] = learn
    return config.Loaded(kinds.VisionRecipe.model_validate(values), {})


def test_lora_adds_matrices_of_its_rank_and_leaves_a_plain_llava(trained, tmp_path):
    learn, fast = {"tower": False, "lora_rank": 2}, {"max_steps": 24, "optimizer": {"lr": 1e-2}}
    loaded = stage_of(trained, tmp_path / "lora", learn, train=fast)
    done = train(loaded, kinds.work_of(loaded.recipe))
    before, after = weights(trained, 12), weights(done, 24)
    assert before.keys() == after.keys()
    inner = {name for name in before if re.search(r"\.(layers|ffns)\..*_proj\.weight$", name)}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == inner | {name for name in before if ".multi_modal_projector." in name}
    for name in inner:
        singular = torch.linalg.svdvals((after[name] - before[name]).double())
        assert singular[1] > 1e-5 and singular[2] < 1e-3 * singular[0]
    model = LlavaForConditionalGeneration.from_pretrained(last_checkpoint(done)).eval()
    held = measure_heldout(
        model, samples_of(trained), Precision("fp32", torch.device("cpu")), batch=4, most=None
    )
    earlier, recorded = (read_jsonl(run / "evaluations.jsonl")[-1]["subsets"] for run in (trained, done))
    for name, row in held.items():
        assert row["nats_per_token"] == pytest.approx(recorded[name]["nats_per_token"], rel=1e-4)
        assert row["nats_per_token"] < earlier[name]["nats_per_token"]


def test_lora_goes_on_and_is_replayed_bit_for_bit(trained, tmp_path):
    loaded = stage_of(trained, tmp_path / "lora", learn={"tower": False, "lora_rank": 2})
    work = kinds.work_of(loaded.recipe)
    done = train(loaded, work)
    once = weights(done, 12)
    assert replay(done, 4, 8).equal
    for folder in ("checkpoints", "states"):
        for step in (8, 12):
            shutil.rmtree(done / folder / f"step-{step:08d}")
    again = weights(train(loaded, work), 12)
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_lora_without_a_language_model_that_has_learnt_is_refused(trained):
    with pytest.raises(ValueError, match=r"give model\.start_from"):
        recipe(trained.parent, learn={"tower": True, "lora_rank": 2})
    with pytest.raises(ValueError, match=r"learn\.language = true"):
        recipe(trained.parent, learn={"tower": True, "language": False, "lora_rank": 2})


def test_a_tower_learns_at_its_own_rate(trained, tmp_path):
    # Adam's first update of each weight is the learning rate, whatever its gradient.
    given = {"optimizer": {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-20}, "schedule": {"final_factor": 1.0}}
    loaded = stage_of(
        trained, tmp_path / "rates", learn={"tower": True, "tower_lr": 1e-5},
        train={"max_steps": 1, **given}, checkpoint={"count": 1},
    )  # fmt: skip
    done = train(loaded, kinds.work_of(loaded.recipe))
    before, after = weights(trained, 12), weights(done, 1)
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    for name, size in moved.items():
        assert size == pytest.approx(1e-5 if ".vision_tower." in name else 1e-3, rel=0.05), name


def test_tiles_are_trained_on_as_images_of_their_own(tmp_path):
    folder = write_pictures(tmp_path, 8)
    for number in range(8):
        wide = Image.open(io.BytesIO(picture("red", number))).resize((32, 16))
        wide.save(folder / "pictures" / f"{number}.png")
    loaded = begin(folder, data={"sequence_length": 96, "tiles": 2}, model={"max_position_embeddings": 96})
    work = kinds.work_of(loaded.recipe)
    samples = work(loaded.recipe, check=False).samples
    batch = samples.fetch(np.arange(2))
    assert batch["pixel_values"].shape == (6, 3, 16, 16)  # the whole and two halves, of each
    assert (batch["input_ids"] == samples.set.image_id).sum(1).tolist() == [48, 48]
    told = [line["loss"] for line in read_jsonl(train(loaded, work) / "metrics.jsonl")]
    assert told[-1] < told[0]


def test_a_source_can_be_held_out_whole(tmp_path):
    folder = write_pictures(tmp_path, 8)
    lines = (folder / "pictures.jsonl").read_text().splitlines(keepends=True)
    (folder / "first.jsonl").write_text("".join(lines[:13]))  # the last one is about an image of the other
    (folder / "last.jsonl").write_text("".join(lines[12:]))
    sources = [
        {"name": name, "kind": "jsonl", "paths": [f"{name}.jsonl"], "license": "CC0-1.0", "heldout": held}
        for name, held in (("first", False), ("last", True))
    ]
    given = recipe(folder).recipe.images.model_dump() | {"sources": sources, "heldout_share": 0.0}
    images = ImageSet(prepare_images(recipe(folder, images=given).recipe.images))
    told = {split: [(one.subset, one.id) for one in images.examples(split)] for split in ("train", "heldout")}
    assert {subset for subset, _ in told["train"]} == {"first"} and len(told["train"]) == 12
    ids = [json.loads(line)["id"] for line in lines]
    assert told["heldout"] == [*(("last", name) for name in ids[12:]), ("first", ids[12])]


def test_held_out_measurement_is_the_mean_of_single_answers(trained):
    samples = samples_of(trained)
    model = LlavaForConditionalGeneration.from_pretrained(last_checkpoint(trained)).eval()
    precision = Precision("fp32", torch.device("cpu"))
    told = measure_heldout(model, samples, precision, batch=3, most=None)
    nats, tokens = 0.0, 0
    model.requires_grad_(False)
    for row in range(len(samples.set.heldout)):
        batch = samples.collate(samples.set.heldout, [row])
        given = {name: torch.from_numpy(array) for name, array in batch.items()}
        labels = given.pop("labels")[0]
        logits = torch.log_softmax(model(**given).logits[0].float(), -1)
        counted = labels != IGNORED
        nats -= float(logits[counted].gather(1, labels[counted][:, None]).sum())
        tokens += int(counted.sum())
    ours = sum(row["nats_per_token"] * row["tokens"] for row in told.values())
    assert ours == pytest.approx(nats, rel=1e-5) and sum(row["tokens"] for row in told.values()) == tokens


def test_bad_records_stop_or_go_to_quarantine(tmp_path):
    folder = write_pictures(tmp_path, 8)
    listed = folder / "pictures.jsonl"
    good = json.loads(listed.read_text().splitlines()[0])
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    bad = [
        "{not json",
        json.dumps(good | {"image": "pictures/missing.png"}),
        json.dumps(good | {"image": "../secret.png"}),
        json.dumps(good | {"image": "pictures/broken.png"}),
        json.dumps(good | {"image": ["pictures/1.png", "pictures/2.png"]}),
        json.dumps(good | {"messages": good["messages"][:1]}),
    ]
    listed.write_text(listed.read_text() + "\n".join(bad) + "\n")
    with pytest.raises(UserError, match=r"pictures\.jsonl:17: .*quarantine"):
        prepare_images(recipe(folder).recipe.images)
    assert not (folder / "images").exists()
    images = recipe(folder, images={**recipe(folder).recipe.images.model_dump(), "on_bad": "quarantine"})
    directory = prepare_images(images.recipe.images)
    told = read_jsonl(directory / "quarantine.jsonl")
    assert len(told) == 6 == read_manifest(directory)["quarantined"]
    expected = (
        "",
        "No such file",
        "outside the folder",
        "not an image",
        "1 <image> markers for 2",
        "without an answer",
    )
    assert all(part in line["error"] for part, line in zip(expected, told, strict=True))


def test_cached_features_teach_what_pixels_teach(trained, tmp_path):
    values = recipe(trained.parent).recipe.model_dump(exclude_unset=True)
    values["model"] = {"start_from": last_checkpoint(trained)}
    values["learn"] = {"tower": False}
    losses = {}
    for cached in (False, True):
        values["run_dir"], values["data"]["cache_features"] = tmp_path / str(cached), cached
        loaded = config.Loaded(kinds.VisionRecipe.model_validate(values), {})
        done = train(loaded, kinds.work_of(loaded.recipe))
        losses[cached] = [line["loss"] for line in read_jsonl(done / "metrics.jsonl")]
    assert losses[True] == pytest.approx(losses[False], rel=2e-3)  # features are kept in half precision
    folder = next(trained.parent.glob("images.features-*"))
    assert read_manifest(folder, "features")["shape"] == [40, 16, 16]
    before, after = weights(trained, 12), weights(tmp_path / "True", 12)
    assert all(torch.equal(before[name], after[name]) for name in before if ".vision_tower." in name)
    assert replay(tmp_path / "True", 4, 8).equal
