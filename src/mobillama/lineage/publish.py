"""Put a run on the Hugging Face Hub: each checkpoint a revision, and proof that what is served was sent.

``main`` holds the last checkpoint with the cards, the records and everyone's manifests; each
``step-XXXXXXXX`` revision holds one checkpoint, whole. A revision that is served with the right hashes
already is left alone, so the same command goes on after a broken connection.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import report
from mobillama.core import atomic
from mobillama.core.errors import UserError
from mobillama.core.hashing import hash_file
from mobillama.core.progress import progress
from mobillama.core.records import LEDGER, MANIFEST, RUN_RECORDS, Ledger, write_manifest
from mobillama.report.run import Run, read_run

from . import cards
from .verify import check

MAIN = "main"
# What the Hub puts into every repository by itself.
HUBS_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Revision:
    """One revision to publish: its name and its files, by their path in the repository."""

    name: str
    files: dict[str, Path]
    sha256: str
    """Of its manifest."""

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Published:
    """What was done: revisions sent now, and those that were there already."""

    sent: list[str]
    present: list[str]


def publish(
    run: Path, repo: str, *, license: str | None = None, read_back: bool = True, endpoint: str | None = None
) -> Published:
    """Publish a run and check what the Hub then serves.

    Arguments:
        repo: owner/name on the Hub; it is made when it is not there.
        license: the weights' licence, for the model card.
        read_back: download every file that was sent and hash it, rather than believe the hashes that the
            Hub states.
        endpoint: another server that speaks the Hub's API.

    Raises:
        UserError: the run is not intact, the connection broke, or the Hub serves other bytes than were sent.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    read = intact_run(run)
    api, done = HfApi(endpoint=endpoint), Published([], [])
    ledger = Ledger(run / LEDGER)
    try:
        api.create_repo(repo, exist_ok=True)
        with ExitStack() as stack:
            revisions = [*steps(read), staged_main(read, stack, repo=repo, license=license)]
            total = sum(revision.size_bytes for revision in revisions)
            advance = stack.enter_context(progress(f"publishing {repo}", total / 1e6, "MB"))
            sent_bytes = 0
            for revision in revisions:
                if send(api, repo, revision):
                    confirm(api, repo, revision, read_back=read_back)
                    ledger.append("publish", repo=repo, revision=revision.name, publication=revision.sha256)
                    done.sent.append(revision.name)
                else:
                    done.present.append(revision.name)
                sent_bytes += revision.size_bytes
                advance(sent_bytes / 1e6, revision.name)
    # The client wraps what broke an upload in RuntimeError.
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        count = len(done.sent) + len(done.present)
        raise UserError(
            f"{repo}: stopped after {count} revisions ({reason}); the same command goes on from there"
        ) from error
    return done


def publish_to_folder(run: Path, repo: str, out: Path, *, license: str | None = None) -> Published:
    """Write what would be published, each revision a folder below ``out``; nothing leaves the machine.

    Raises:
        UserError: the run is not intact.
    """
    read = intact_run(run)
    sent = []
    with ExitStack() as stack:
        for revision in [*steps(read), staged_main(read, stack, repo=repo, license=license)]:
            with atomic.atomic_directory(out / revision.name) as folder:
                for name, path in revision.files.items():
                    atomic.link(path, folder / name)
            sent.append(revision.name)
    return Published(sent, [])


def intact_run(run: Path) -> Run:
    """Return a run's records after verifying everything: nothing broken is ever published."""
    if problems := check(run).problems:
        raise UserError(f"{problems[0]}; nothing was published (mobillama verify {run} names every problem)")
    read = read_run(run)
    if not read.checkpoints:
        raise UserError(f"{run}: no checkpoint to publish")
    return read


def steps(run: Run) -> Iterator[Revision]:
    """Yield a revision for each checkpoint: all of its files and its manifest."""
    for held in run.checkpoints:
        names = [entry["path"] for entry in held.manifest["files"]]
        yield Revision(held.path.name, {name: held.path / name for name in [*names, MANIFEST]}, held.sha256)


def staged_main(run: Run, stack: ExitStack, *, repo: str, license: str | None) -> Revision:
    """Return the ``main`` revision, staged in a folder that lives as long as ``stack``."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobillama-publish-")))
    last = run.checkpoints[-1]
    for entry in last.manifest["files"]:
        atomic.link(last.path / entry["path"], folder / entry["path"])
    for name in (*RUN_RECORDS, LEDGER):
        if (run.path / name).is_file():
            # A copy: the run's own file may be appended to while this one is read.
            (folder / "run").mkdir(exist_ok=True)
            shutil.copyfile(run.path / name, folder / "run" / name)
    for held in run.checkpoints:
        atomic.link(held.path / MANIFEST, folder / "run" / "manifests" / f"{held.path.name}.json")
    if run.corpus:
        atomic.link(run.corpus.path / MANIFEST, folder / "run" / "manifests" / "corpus.json")
    cards.write(run.path, folder, repo=repo, license=license)
    report.write(run.path, folder / "report.html")
    sha256 = write_manifest(
        folder,
        "publication",
        run=run.name,
        checkpoint=last.sha256,
        corpus=last.manifest.get("corpus"),
        revisions={held.path.name: held.sha256 for held in run.checkpoints},
    )
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return Revision(MAIN, files, sha256)


def send(api: Any, repo: str, revision: Revision) -> bool:
    """Upload what a revision lacks; tell whether anything was missing."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if revision.name != MAIN:
        api.create_branch(repo, branch=revision.name, exist_ok=True)
    held = served(api, repo, revision.name)
    lacking = [name for name, path in revision.files.items() if not same(path, held.get(name))]
    if not lacking:
        return False
    # A new branch starts as a copy of main, so what is not ours to serve here goes.
    stale = sorted(held.keys() - revision.files.keys() - HUBS_OWN)
    operations: list[Any] = [CommitOperationAdd(name, str(revision.files[name])) for name in lacking]
    operations += [CommitOperationDelete(name) for name in stale]
    message = f"{revision.name}: manifest {revision.sha256}"
    api.create_commit(repo, operations, commit_message=message, revision=revision.name)
    return True


def served(api: Any, repo: str, revision: str) -> dict[str, Any]:
    """Return what the Hub says it serves of a revision, by path."""
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}


def same(path: Path, entry: Any) -> bool:
    """Tell whether a file has the hash that the Hub states: SHA-256 for large files, git's for small ones."""
    from huggingface_hub.utils.sha import git_hash

    if entry is None or entry.size != path.stat().st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == hash_file(path).sha256
    return entry.blob_id == git_hash(path.read_bytes())


def confirm(api: Any, repo: str, revision: Revision, *, read_back: bool) -> None:
    """Compare what the Hub now serves with what was sent.

    Raises:
        UserError: the first file that differs.
    """
    held = served(api, repo, revision.name)
    extra = held.keys() - revision.files.keys() - HUBS_OWN
    if extra:
        raise UserError(f"{repo}@{revision.name}: serves {sorted(extra)[0]}, which was not sent")
    for name, path in revision.files.items():
        if not same(path, held.get(name)):
            raise UserError(f"{repo}@{revision.name}: {name} is not served as it was sent; publish again")
        if read_back and downloaded_sha256(api, repo, revision.name, name) != hash_file(path).sha256:
            raise UserError(f"{repo}@{revision.name}: {name} downloads as something else; publish again")


def downloaded_sha256(api: Any, repo: str, revision: str, name: str) -> str:
    """Return the SHA-256 of a file as the Hub hands it out, past every cache of ours."""
    with tempfile.TemporaryDirectory(prefix="mobillama-read-back-") as folder:
        path = api.hf_hub_download(repo, name, revision=revision, cache_dir=folder, force_download=True)
        return hash_file(Path(path)).sha256
