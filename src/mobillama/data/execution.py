"""Where tasks run: worker processes here, Slurm or Ray; all through datatrove's executors.

A task that is done leaves a mark in ``STAGE/completions``, and is not done again.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from mobillama.core.errors import UserError, require_extra
from mobillama.core.progress import progress

from .recipe import CorpusSection

POLL_S = 5.0
PRELOAD = [
    "mobillama.data.selection",
    "mobillama.data.shards",
    "mobillama.data.staging",
    "mobillama.data.vocabulary",
]


@dataclass(frozen=True)
class Stage:
    """One stage of preparation: the same steps over numbered tasks, each of some weight."""

    name: str
    title: str
    steps: Sequence[PipelineStep]
    weights: Sequence[float]
    unit: str = "MB"


class LocalTasks(LocalPipelineExecutor):
    """Datatrove's local executor with our own pool around its tasks.

    Its pool waits for ever when the system kills a worker, logs to the terminal and pickles each task with
    dill. Task completion, skipping and statistics are datatrove's.
    """

    def run_task(self, rank: int) -> int:
        """Run one task in a worker; errors travel to the caller, not to a log."""
        logger.disable("datatrove")
        self._run_for_rank(rank)
        return rank


Run = Callable[[Stage], None]


@contextmanager
def runner(section: CorpusSection, work: Path) -> Iterator[Run]:
    """Yield the function that runs a stage to its end, where the recipe says.

    Raises:
        UserError: from a task, or because tasks ended without being done.
    """
    if section.executor.kind == "local":
        workers = section.workers or os.cpu_count() or 1
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        with ProcessPoolExecutor(workers, context, initializer=start_worker) as pool:
            yield lambda stage: run_local(stage, work, pool)
    else:
        yield lambda stage: run_remote(stage, work, section)


def start_worker() -> None:
    """Make a worker die quietly with Ctrl-C, and at once when the process that started it is gone.

    A worker that outlived a killed preparation would write into the next one's files.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_local(stage: Stage, work: Path, pool: ProcessPoolExecutor) -> None:
    """Run the unfinished tasks of a stage in the pool; the first error stops the rest."""
    executor = LocalTasks(list(stage.steps), tasks=len(stage.weights), logging_dir=str(work / stage.name))
    todo: list[int] = executor.get_incomplete_ranks()
    done = sum(stage.weights) - sum(stage.weights[rank] for rank in todo)
    with progress(stage.title, sum(stage.weights), stage.unit) as advance:
        # Heaviest first, so that no worker is left alone with a long task at the end.
        heaviest = sorted(todo, key=lambda rank: -stage.weights[rank])
        futures: list[Future[int]] = [pool.submit(executor.run_task, rank) for rank in heaviest]
        try:
            for future in as_completed(futures):
                done += stage.weights[future.result()]
                advance(done)
        except BrokenProcessPool:
            raise UserError(
                f"{work}: a worker process was killed while {stage.title} (out of memory?); "
                "run the same command again with fewer corpus.workers: what is done stays done"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_remote(stage: Stage, work: Path, section: CorpusSection) -> None:
    """Run a stage on a cluster and wait for it; the work folder must be on a shared file system."""
    executor = slurm_executor(stage, work, section) if section.executor.kind == "slurm" else ray_executor(stage, work, section)  # fmt: skip
    with progress(stage.title, sum(stage.weights), stage.unit) as advance:
        executor.run()
        while todo := executor.get_incomplete_ranks(skip_completed=True):
            advance(sum(stage.weights) - sum(stage.weights[rank] for rank in todo))
            if not running(executor) and executor.get_incomplete_ranks(skip_completed=True):
                raise UserError(
                    f"{stage.title}: {len(todo)} of {len(stage.weights)} tasks ended without being done; "
                    f"{work / stage.name} holds their logs. The same command goes on from here"
                )
            time.sleep(POLL_S)
        advance(sum(stage.weights))


def slurm_executor(stage: Stage, work: Path, section: CorpusSection) -> PipelineExecutor:
    """Return datatrove's Slurm executor for a stage."""
    from datatrove.executor.slurm import SlurmPipelineExecutor

    return SlurmPipelineExecutor(
        list(stage.steps),
        tasks=len(stage.weights),
        workers=section.workers or -1,
        logging_dir=str(work / stage.name),
        job_name=f"mobillama-{stage.name}",
        partition=section.executor.partition,
        time=section.executor.time,
        mem_per_cpu_gb=section.executor.mem_per_cpu_gb,
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
    )


def ray_executor(stage: Stage, work: Path, section: CorpusSection) -> PipelineExecutor:
    """Return datatrove's Ray executor for a stage."""
    require_extra("train", "ray")
    from datatrove.executor.ray import RayPipelineExecutor

    return RayPipelineExecutor(
        list(stage.steps),
        tasks=len(stage.weights),
        workers=section.workers or -1,
        logging_dir=str(work / stage.name),
        mem_per_cpu_gb=section.executor.mem_per_cpu_gb,
        time=section.executor.time_limit_s,
    )


def running(executor: Any) -> bool:
    """Return whether a cluster still works on an executor's job; Ray's returns only when it does not."""
    job = getattr(executor, "job_id", None)
    if job in (None, -1):
        return False
    asked = subprocess.run(
        ["squeue", "--noheader", "--job", str(job)], capture_output=True, text=True, check=False
    )
    return asked.returncode == 0 and bool(asked.stdout.strip())
