"""Where tasks run: worker processes here, Slurm or Ray; all through datatrove's executors.

A task that is done leaves a mark in ``STAGE/completions``, and is not done again.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger

from mobillama.core.errors import UserError
from mobillama.core.progress import progress

from .recipe import CorpusSection
from .workplace import Step

POLL_S = 5.0
PRELOAD = ["mobillama.data.staging", "mobillama.data.selection", "mobillama.data.shards", "pandas"]
"""What workers inherit instead of importing it; Arrow imports pandas at its first array, where it can."""


@dataclass(frozen=True)
class Stage:
    """One stage of preparation: the same steps over numbered tasks, each of some weight."""

    name: str
    title: str
    steps: Sequence[Step]
    weights: Sequence[float]
    unit: str


class LocalTasks(LocalPipelineExecutor):
    """Datatrove's local executor with our own pool around its tasks.

    Its own pool waits for ever when the system kills a worker, writes logs to the terminal, and starts a
    server process for each stage. What marks, skips and measures tasks is datatrove's.
    """

    def run_task(self, rank: int) -> int:
        """Run one task in a worker and return its rank; errors travel to the caller, not to a log."""
        logger.disable("datatrove")
        self._run_for_rank(rank)
        return rank


@contextmanager
def runner(section: CorpusSection, work: Path) -> Generator[Callable[[Stage], None]]:
    """Yield the function that runs a stage to its end, where the recipe says.

    Raises:
        UserError: from a task, or because tasks ended without being done.
    """
    if section.executor.kind != "local":
        yield lambda stage: run_remote(stage, work, section)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    workers = section.workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, context, initializer=start_worker) as pool:
        yield lambda stage: run_local(stage, work, pool)


def start_worker() -> None:
    """Make a worker end quietly with Ctrl-C, and at once when the process that started it is gone.

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
    # Heaviest first, so that no worker is left alone with a long task at the end.
    heaviest = sorted(todo, key=lambda rank: -stage.weights[rank])
    with progress(stage.title, sum(stage.weights), stage.unit) as advance:
        try:
            for future in as_completed([pool.submit(executor.run_task, rank) for rank in heaviest]):
                done += stage.weights[future.result()]
                advance(done)
        except BrokenProcessPool:
            raise UserError(
                f"{work}: a worker was killed while {stage.title} (out of memory?); run the same command "
                "again with fewer corpus.workers: what is done stays done"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_remote(stage: Stage, work: Path, section: CorpusSection) -> None:
    """Run a stage on a cluster and wait for it; the work folder must be on a shared file system."""
    make = slurm_executor if section.executor.kind == "slurm" else ray_executor
    logger.disable("datatrove")  # the progress display says what there is to say
    executor = make(stage, work, section)
    with progress(stage.title, sum(stage.weights), stage.unit) as advance:
        executor.run()
        while True:
            at_work = is_running(executor)  # asked first: what ends in between is seen as done below
            todo: list[int] = executor.get_incomplete_ranks()
            advance(sum(stage.weights) - sum(stage.weights[rank] for rank in todo))
            if not todo:
                return
            if not at_work:
                raise UserError(
                    f"{stage.title}: {len(todo)} of {len(stage.weights)} tasks ended without being done; "
                    f"their logs are in {work / stage.name}. The same command goes on from here"
                )
            time.sleep(POLL_S)


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
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
    )


def ray_executor(stage: Stage, work: Path, section: CorpusSection) -> PipelineExecutor:
    """Return datatrove's Ray executor for a stage."""
    if find_spec("ray") is None:
        raise UserError('corpus.executor.kind = "ray" needs Ray: pip install ray')
    from datatrove.executor.ray import RayPipelineExecutor

    return RayPipelineExecutor(
        list(stage.steps),
        tasks=len(stage.weights),
        workers=section.workers or -1,
        logging_dir=str(work / stage.name),
        mem_per_cpu_gb=section.executor.mem_per_cpu_gb,
        time=section.executor.time_limit_s,
    )


def is_running(executor: Any) -> bool:
    """Return whether Slurm still works on an executor's job; Ray's has ended when ``run`` returns."""
    job = getattr(executor, "job_id", None)
    if job in (None, -1):
        return False
    command = ["squeue", "--noheader", "--job", str(job)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())
