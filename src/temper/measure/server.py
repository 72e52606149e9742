"""The program of a process that serves one artifact under load: several instances of the model, one queue.

Arrivals are scheduled beforehand, so whoever waits is counted from when the request should have been answered, not
from when somebody found time to send it (coordinated omission).
"""

import ctypes
import sys
import threading
import time

import numpy as np

from temper.core.artifact import Artifact, Model, example_inputs
from temper.core.schema import Array
from temper.measure.child import serve

WARM_UP_CALLS = 20
SET_TIMER_SLACK = 29
"""Linux's prctl for how late a sleeping thread may be woken up: 50 microseconds unless one asks for less."""


class Server:
    """Instances of one artifact, each with threads of its own, which take requests from one queue in order."""

    def __init__(self) -> None:
        self.models: list[Model] = []
        self.inputs: dict[int, tuple[Array, ...]] = {}

    def load(self, folder: str, instances: int, threads: int, batch: int, length: int | None = None) -> None:
        """Load the instances, and run each with every number of examples that it may be given at once."""
        artifact = Artifact.open(folder)
        # Whoever starts this process has asked whether native code in the artifact is to be trusted.
        self.models = [artifact.load(threads, trust=True) for _ in range(instances)]
        fixed = artifact.schema.batch
        counts = [fixed] if fixed else range(1, batch + 1)
        self.inputs = {count: example_inputs(artifact.schema, count, length) for count in counts}
        for model in self.models:
            for inputs in self.inputs.values():
                for _ in range(WARM_UP_CALLS):
                    model(*inputs)

    def answer(self, arrivals: str, completions: str, most: int, limit_s: float) -> None:
        """Answer requests that arrive at these seconds, (requests,) ascending, at most `most` of them in one call.

        Writes the second at which each was answered, infinity for those that were not before `limit_s`.
        """
        queue = _Queue(np.load(arrivals, allow_pickle=False), most, limit_s)
        threads = [threading.Thread(target=self._instance, args=(model, queue)) for model in self.models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if queue.error is not None:
            raise queue.error
        np.save(completions, queue.completions, allow_pickle=False)

    def _instance(self, model: Model, queue: "_Queue") -> None:
        _wake_up_on_time()
        try:
            while (taken := queue.take()) is not None:
                first, stop = taken
                count = stop - first
                # A model of a fixed batch always computes all of it.
                model(*self.inputs.get(count, next(iter(self.inputs.values()))))
                queue.completions[first:stop] = queue.now()
        except Exception as error:  # noqa: BLE001 (the thread that waits for this one raises it)
            queue.error = error


class _Queue:
    """Requests in the order of their arrival, and when each was answered."""

    def __init__(self, arrivals: Array, most: int, limit_s: float) -> None:
        self.arrivals, self.most, self.limit_s = arrivals, most, limit_s
        self.completions = np.full(len(arrivals), np.inf)
        self.error: Exception | None = None
        self._next = 0
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def take(self) -> tuple[int, int] | None:
        """The next request and those that wait behind it, first..stop, once it has arrived; None at the end."""
        with self._lock:
            first, now = self._next, self.now()
            if first >= len(self.arrivals) or now > self.limit_s or self.error is not None:
                return None
            waiting = int(np.searchsorted(self.arrivals[first : first + self.most], now, side="right"))
            stop = first + max(1, waiting)
            self._next = stop
        early = self.arrivals[first] - self.now()
        if early > 0:
            time.sleep(early)
        return first, stop


def _wake_up_on_time() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_TIMER_SLACK, 1)


def main() -> None:
    server = Server()
    serve({"load": server.load, "answer": server.answer})


if __name__ == "__main__":
    main()
