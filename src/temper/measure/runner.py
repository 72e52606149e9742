"""The program of a measuring process: load one artifact, then predict, time or weigh it. It never imports torch
unless the artifact's runtime is torch."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from temper.core.artifact import Artifact, Model, example_inputs
from temper.core.lengths import Positions, at_length, batches, gathered, inputs_at, separated
from temper.core.schema import Array, Schema
from temper.measure.child import serve

DISTINCT_BATCHES = 8
"""How many different batches a timed loop cycles through, so that no cache sees one input only."""


class Session:
    """What one process holds: the loaded model and the inputs that it is timed with."""

    def __init__(self) -> None:
        self.model: Model
        self.artifact: Artifact
        self.batches: list[tuple[Array, ...]]
        self.cycle = 1

    def load(self, folder: str, threads: int) -> None:
        self.artifact = Artifact.open(folder)
        # Whoever starts this process has made the artifact, or has asked whether native code in it is to be trusted.
        self.model = self.artifact.load(threads, trust=True)

    def predict(self, inputs: Sequence[str], outputs: str, batch: int, start: int, stop: int) -> list[str]:
        """Run examples start..stop of the input files; one file an output, shaped (examples, ...).

        Examples of different lengths are run in groups of one length; where that makes outputs differ in size, the
        smaller ones are padded with zeros.
        """
        schema = self.artifact.schema
        arrays = [array[start:stop] for array in _stored(inputs)]
        batch = schema.batch or batch
        positions, chunks = [], []
        for rows, part in batches(schema, arrays, batch):
            chunks.append(self._run(part, batch))
            positions.append(rows)
        files = []
        for index, whole in enumerate(gathered(positions, chunks)):
            file = f"{outputs}_{index}.npy"
            np.save(file, whole, allow_pickle=False)
            files.append(file)
        return files

    def prepare(self, inputs: Sequence[str], batch: int, length: int | None = None) -> list[int]:
        """Choose the batches to be timed with; their lengths, where those differ.

        These are the first examples of the files, all at `length` if there is one; examples of different lengths stand
        at the middles of equal shares of their order by length, each batch of one length. Without files, inputs are
        made up.
        """
        schema = self.artifact.schema
        if not inputs:
            self.batches = [example_inputs(schema, batch, length)]
            return []
        arrays, lengths = separated(schema, _stored(inputs))
        if lengths is None:
            rows = _first(len(arrays[0]), batch)
            self.batches = [inputs_at(schema, arrays, None, each) for each in rows]
            return []
        if length is not None:
            self.batches = [_at_length(schema, arrays, lengths, each, length) for each in _first(len(lengths), batch)]
            return []
        rows = _spread(lengths, batch)
        self.batches = [inputs_at(schema, arrays, lengths, each) for each in rows]
        timed = [int(lengths[each[0]]) for each in rows]
        self.cycle = len(rows) if len(set(timed)) > 1 else 1
        return timed

    def block(self, calls: int, settle: int = 0) -> dict[str, Any]:
        """Time at least so many calls: seconds of each, and how much of the block the processor was ours.

        The calls go through all lengths equally often, `cycle` calls each time. The first `settle` are thrown away.
        """
        model, batches = self.model, self.batches
        calls = settle + -(-calls // self.cycle) * self.cycle
        seconds = np.empty(calls)
        clock = time.perf_counter
        processor, began = time.process_time(), clock()
        for index in range(calls):
            batch = batches[index % len(batches)]
            before = clock()
            model(*batch)
            seconds[index] = clock() - before
        wall = clock() - began
        share = (time.process_time() - processor) / max(wall, 1e-9)
        return {"seconds": seconds[settle:].tolist(), "cycle": self.cycle, "processor_share": share}

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


def _stored(files: Sequence[str]) -> list[Array]:
    return [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]


def _first(count: int, batch: int) -> list[Positions]:
    """Batches of the first examples, as many as are distinct."""
    starts = range(0, max(1, min(count - batch + 1, DISTINCT_BATCHES * batch)), batch)
    return [np.arange(start, start + batch) % count for start in starts]


def _spread(lengths: Array, batch: int) -> list[Positions]:
    """Batches of one length each, spread evenly over the lengths as they come (examples,)."""
    order = np.argsort(lengths, kind="stable")
    count = min(DISTINCT_BATCHES, len(order))
    middles = order[((np.arange(count) + 0.5) / count * len(order)).astype(np.int64)]
    alike = (np.flatnonzero(lengths == lengths[middle]) for middle in middles)
    # Each batch begins with its own example, so that two batches of one length differ.
    return [
        np.resize(np.roll(each, -int(np.searchsorted(each, middle))), batch) for middle, each in zip(middles, alike)
    ]


def _at_length(
    schema: Schema, arrays: Sequence[Array], lengths: Array, rows: Positions, length: int
) -> tuple[Array, ...]:
    """One batch of examples, each cut or repeated to that length."""
    singles = [inputs_at(schema, arrays, lengths, rows[index : index + 1]) for index in range(len(rows))]
    return at_length(singles, [spec.length_axis for spec in schema.inputs], length)


def main() -> None:
    session = Session()
    handlers = (session.load, session.predict, session.prepare, session.block, session.profile, session.peak_memory)
    serve({handler.__name__: handler for handler in handlers})


if __name__ == "__main__":
    main()
