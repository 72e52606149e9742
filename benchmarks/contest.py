"""Contestants of any kind in resident processes, timed in alternating blocks by temper's own measurement.

Run as a program it is the child's side: it loads one contestant and answers `predict` and `block`.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from temper.hardware.cores import lease
from temper.measure.child import serve
from temper.measure.latency import Timing, alternated
from temper.measure.worker import Worker

sys.path.insert(0, str(Path(__file__).parent))
LIMIT_S = 1800.0


class Contestant:
    """A bare runtime session or a loaded temper artifact, called with one array."""

    def load(self, kind: str, path: str, threads: int, inputs: str, options: dict[str, Any] | None = None) -> None:
        self.call = {"onnxruntime": _onnxruntime, "openvino": _openvino, "temper": _temper}[kind](
            path, threads, options or {}
        )
        self.inputs = np.load(inputs, mmap_mode="r")

    def predict(self, file: str, batch: int) -> None:
        chunks = [np.ascontiguousarray(self.inputs[at : at + batch]) for at in range(0, len(self.inputs), batch)]
        np.save(file, np.concatenate([self.call(chunk) for chunk in chunks]))

    def block(self, calls: int) -> dict[str, Any]:
        singles = [np.ascontiguousarray(self.inputs[at : at + 1]) for at in range(8)]
        seconds = np.empty(calls)
        clock, processor, began = time.perf_counter, time.process_time(), time.perf_counter()
        for index in range(calls):
            x = singles[index % 8]
            before = clock()
            self.call(x)
            seconds[index] = clock() - before
        share = (time.process_time() - processor) / (clock() - began)
        return {"seconds": seconds.tolist(), "processor_share": share}


def contest(
    contestants: Mapping[str, Mapping[str, Any]], inputs: Path, *, threads: int = 1, rounds: int = 60
) -> tuple[dict[str, Timing], dict[str, np.ndarray]]:
    """Predictions of each contestant for all inputs, and its timings at batch 1, all in the same rounds."""
    predictions = {}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        log = Path(scratch) / "log"
        cores = stack.enter_context(lease(threads))
        workers = []
        for index, spec in enumerate(contestants.values()):
            worker = Worker("contest", log=log, memory_bytes=1 << 34, cores=cores, threads=threads)
            stack.enter_context(worker)
            worker.call("load", time_s=LIMIT_S, threads=threads, inputs=str(inputs), **spec)
            worker.call("predict", time_s=LIMIT_S, file=f"{scratch}/{index}.npy", batch=32)
            workers.append(worker)
        for index, name in enumerate(contestants):
            predictions[name] = np.load(f"{scratch}/{index}.npy")
        timings = alternated(workers, rounds=rounds, block_s=0.025, one_thread=threads == 1)
    return dict(zip(contestants, timings)), predictions


def _onnxruntime(path: str, threads: int, options: dict[str, Any]) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _openvino(path: str, threads: int, options: dict[str, Any]) -> Any:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False, **options}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda x: np.array(request.infer({0: x}, share_inputs=True, share_outputs=True)[0])


def _temper(path: str, threads: int, options: dict[str, Any]) -> Any:
    import temper

    return temper.load(path, threads)


if __name__ == "__main__":
    contestant = Contestant()
    serve({"load": contestant.load, "predict": contestant.predict, "block": contestant.block})
