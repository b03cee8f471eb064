"""Publishing through huggingface_hub's own client to a local double; hub_double.py says what that covers."""

import hashlib
import json
import shutil

import pytest
from fixture_run import make_corpus, make_run
from hub_double import running_hub

from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, manifest_hash
from mobillama.lineage.publish import publish, publish_to_folder
from mobillama.lineage.verify import verify

constants = pytest.importorskip("huggingface_hub.constants")
REPO = "owner/tiny"
STEPS = [f"step-{step:08d}" for step in range(50, 401, 50)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish")
    make_run(folder / "run", make_corpus(folder / "corpus"))
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy") / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with running_hub() as running:
        yield running


def test_each_checkpoint_becomes_a_revision_that_verifies_after_download(run, hub, tmp_path):
    assert publish(run, REPO, endpoint=hub.url).sent == [*STEPS, "main"]
    branches = hub.branches[REPO]
    assert sorted(branches) == ["main", *STEPS]
    for name in STEPS:
        served = {path: content for path, content in branches[name].items() if path != ".gitattributes"}
        folder = tmp_path / "served" / "checkpoints" / name
        for path, content in served.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        assert manifest_hash(folder) == manifest_hash(run / "checkpoints" / name)
    assert verify(tmp_path / "served") == []


def test_main_holds_last_weights_cards_records_and_all_manifests(run, hub):
    before = (run / "ledger.jsonl").read_bytes()
    publish(run, REPO, endpoint=hub.url, license="apache-2.0")
    main = hub.branches[REPO]["main"]
    last = run / "checkpoints" / STEPS[-1]
    assert main["model.safetensors"] == (last / "model.safetensors").read_bytes()
    assert (
        b"license: apache-2.0" in main["README.md"] and b'from_pretrained("owner/tiny")' in main["README.md"]
    )
    assert main["run/metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()
    assert main["run/ledger.jsonl"].startswith(before)
    record = json.loads(main["manifest.json"])
    for name in STEPS:
        text = main[f"run/manifests/{name}.json"]
        assert record["revisions"][name] == hashlib.sha256(text).hexdigest()
        assert text == (run / "checkpoints" / name / "manifest.json").read_bytes()


def test_the_ledger_tells_what_was_published(run, hub):
    publish(run, REPO, endpoint=hub.url)
    told = [entry for entry in Ledger(run / "ledger.jsonl").entries() if entry["event"] == "publish"]
    assert [entry["revision"] for entry in told] == [*STEPS, "main"]
    assert told[2]["publication"] == manifest_hash(run / "checkpoints" / STEPS[2])
    assert verify(run) == []


def test_after_a_broken_connection_the_same_command_sends_only_the_rest(run, hub):
    hub.break_after_uploads = 3
    with pytest.raises(UserError, match=r"stopped after 3 revisions .* the same command goes on"):
        publish(run, REPO, endpoint=hub.url)
    assert len(hub.uploads) == 3
    hub.break_after_uploads = None
    result = publish(run, REPO, endpoint=hub.url)
    assert result.present == STEPS[:3] and result.sent == [*STEPS[3:], "main"]
    assert len(hub.uploads) == len(set(hub.uploads))


def test_published_twice_changes_only_what_the_ledger_added(run, hub):
    publish(run, REPO, endpoint=hub.url)
    before = dict(hub.branches[REPO]["main"])
    assert publish(run, REPO, endpoint=hub.url).present == STEPS
    after = hub.branches[REPO]["main"]
    assert before.keys() == after.keys()
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"run/ledger.jsonl", "report.html", "TRANSPARENCY.md", "manifest.json"}


def test_a_hub_that_serves_one_step_as_another_is_caught(run, hub):
    """What readers of published checkpoints met for years."""
    other = (run / "checkpoints" / STEPS[0] / "model.safetensors").read_bytes()
    hub.swapped[STEPS[2], "model.safetensors"] = other
    with pytest.raises(UserError, match=r"step-00000150: model\.safetensors downloads as something else"):
        publish(run, REPO, endpoint=hub.url)


def test_a_run_that_is_not_intact_is_not_published(run, hub):
    path = run / "checkpoints" / STEPS[1] / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="nothing was published"):
        publish(run, REPO, endpoint=hub.url)
    assert hub.branches == {}


def test_a_dry_run_writes_every_revision_to_a_folder(run, tmp_path):
    result = publish_to_folder(run, REPO, tmp_path / "dry")
    assert result.sent == [*STEPS, "main"]
    assert verify(tmp_path / "dry" / "main") == []
    for name in STEPS:
        assert verify(tmp_path / "dry" / name) == []
        assert manifest_hash(tmp_path / "dry" / name) == manifest_hash(run / "checkpoints" / name)
