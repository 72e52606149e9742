"""The program of a measuring process: load one artifact, then predict, time or weigh it. It never imports torch
unless the artifact's runtime is torch."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from temper.core.artifact import Artifact, Model, example_inputs
from temper.core.schema import Array
from temper.measure.child import serve

DISTINCT_BATCHES = 8
"""How many different batches a timed loop cycles through, so that no cache sees one input only."""


class Session:
    """What one process holds: the loaded model and the inputs that it is timed with."""

    def __init__(self) -> None:
        self.model: Model
        self.artifact: Artifact
        self.batches: list[tuple[Array, ...]]

    def load(self, folder: str, threads: int) -> None:
        self.artifact = Artifact.open(folder)
        # Whoever starts this process has made the artifact, or has asked whether native code in it is to be trusted.
        self.model = self.artifact.load(threads, trust=True)

    def predict(self, inputs: Sequence[str], outputs: str, batch: int, start: int, stop: int) -> list[str]:
        """Run examples start..stop of the input files; one file an output, shaped (examples, ...)."""
        arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for file in inputs]
        batch = self.artifact.schema.batch or batch
        chunks: list[tuple[Array, ...]] = []
        for first in range(start, stop, batch):
            part = tuple(np.ascontiguousarray(array[first : min(first + batch, stop)]) for array in arrays)
            chunks.append(self._run(part, batch))
        files = []
        for index, parts in enumerate(zip(*chunks)):
            file = f"{outputs}_{index}.npy"
            np.save(file, np.concatenate(parts), allow_pickle=False)
            files.append(file)
        return files

    def prepare(self, inputs: Sequence[str], batch: int) -> None:
        """Choose the batches to be timed with: the first examples of the files, or made-up ones without files."""
        if not inputs:
            self.batches = [example_inputs(self.artifact.schema, batch)]
            return
        arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for file in inputs]
        count = len(arrays[0])
        starts = range(0, max(1, min(count - batch + 1, DISTINCT_BATCHES * batch)), batch)
        rows = [np.arange(start, start + batch) % count for start in starts]
        self.batches = [tuple(np.ascontiguousarray(array[each]) for array in arrays) for each in rows]

    def block(self, calls: int) -> dict[str, Any]:
        """Time that many calls, one by one: seconds of each, and how much of the block the processor was ours."""
        model, batches = self.model, self.batches
        seconds = np.empty(calls)
        clock = time.perf_counter
        processor, began = time.process_time(), clock()
        for index in range(calls):
            batch = batches[index % len(batches)]
            before = clock()
            model(*batch)
            seconds[index] = clock() - before
        wall = clock() - began
        return {"seconds": seconds.tolist(), "processor_share": (time.process_time() - processor) / max(wall, 1e-9)}

    def profile(self, threads: int, calls: int) -> list[dict[str, Any]]:
        """The kernels that the runtime executes, by its own clock, over so many calls with the prepared batches."""
        inputs = [self.batches[index % len(self.batches)] for index in range(calls)]
        artifact = self.artifact
        kernels = artifact.runtime.profile(artifact.folder, artifact.schema, threads, inputs)
        return [asdict(kernel) for kernel in kernels]

    def peak_memory(self) -> int:
        """Bytes that were resident at most in the life of this process (Linux's VmHWM)."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise OSError("the kernel does not state VmHWM")

    def _run(self, part: tuple[Array, ...], batch: int) -> tuple[Array, ...]:
        count = len(part[0])
        if self.artifact.schema.batch and count < batch:
            # A model of fixed batch: the last, short batch is filled up with its own first example.
            part = tuple(np.concatenate([each, np.repeat(each[:1], batch - count, axis=0)]) for each in part)
        outputs = self.model(*part)
        if isinstance(outputs, dict):
            outputs = tuple(outputs.values())
        flat = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output[:count] for output in flat)


def main() -> None:
    session = Session()
    handlers = (session.load, session.predict, session.prepare, session.block, session.profile, session.peak_memory)
    serve({handler.__name__: handler for handler in handlers})


if __name__ == "__main__":
    main()
