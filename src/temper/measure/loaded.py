"""A measuring process with one artifact loaded and its inputs prepared: what latency, memory and energy start from."""

from collections.abc import Sequence
from pathlib import Path

from temper.core.goal import Conditions
from temper.measure.worker import Worker

LOAD_S = 120.0
"""The longest that loading an artifact or one block of calls may take."""


def loaded(
    artifact: Path,
    inputs: Sequence[Path],
    conditions: Conditions,
    *,
    log: Path,
    memory_bytes: int,
    cores: tuple[int, ...] = (),
) -> Worker:
    """Start the process; the caller closes it. Without input files the inputs are made up to fit the schema."""
    worker = Worker(
        "temper.measure.runner", log=log, memory_bytes=memory_bytes, cores=cores, threads=conditions.threads
    )
    try:
        worker.call("load", time_s=LOAD_S, folder=str(artifact), threads=conditions.threads)
        worker.call("prepare", time_s=LOAD_S, inputs=[str(file) for file in inputs], batch=conditions.batch)
    except BaseException:
        worker.close()
        raise
    return worker
