"""temper against every other way to run the same models on this machine: one table, one resumable command.

    python benchmarks/breadth.py [--row NAME ...] [--threads 1 2] [--budget 3m]

Each finished row is written to benchmarks/results/breadth/ and the table, benchmarks/breadth.md, made again from all
of them. What is finished is not done again, unless --again asks for it. All contestants of a row run in the same
interleaved rounds, one example a call, and answer the same proof examples. Needs the extras `openvino` and `bench`,
and the data that TEMPER_DATA names.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(Path(__file__).parent / "tasks"))

import numpy as np

import breadth_page
import peers
import temper
from contest import PROCESSES, Refused, built, predicted, ratio, timed
from peers.subject import ABOUT, PARTS, Subject, export, store
from places import CACHE
from records import read_json, write_json
from temper import Conditions, Goal, Result, Task, optimize
from temper.core.data import Examples, Parts
from temper.core.schema import Array, Outputs
from temper.core.task import OnnxFile
from temper.hardware.detect import this_host
from temper.measure.latency import Timing
from temper.measure.metrics import resolve, settled
from temper.measure.quality import Quality, compare
from temper.pipeline.materialize import materialize
from temper.pipeline.task_loading import load_task

TASKS = Path(__file__).resolve().parent / "tasks"
LIBRARIES = ("torch", "torchao", "onnxruntime", "openvino", "nncf")
LOSS = 0.01
"""What may be lost of the metric; of perplexity, whose drop is relative, of the original's score."""
TEMPER, BASELINE, AGAIN = "temper", "temper's baseline, the best float runtime", "temper again (noise)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of the table: its task, and whether peers are told that it is a transformer.

    `unproven`: the task has so few labels that hardly anything could be proven to lose less than a point. Then temper
    may ship, as everyone else does, what keeps the limit on these examples without proof.
    """

    name: str
    task: str
    transformer: bool = False
    unproven: bool = False

    @property
    def reference(self) -> str:
        return str(TASKS / self.task)


ROWS = (
    Row(name="resnet20_cifar10", task="resnet20_cifar10.py:task"),
    Row(name="resnet56_cifar10", task="resnet56_cifar10.py:task"),
    Row(name="mlperftiny_resnet8", task="mlperftiny_resnet8.py:task"),
    Row(name="tinydarknet", task="tinydarknet.py:task", unproven=True),
    Row(name="minilm_sst2_natural", task="minilm_sst2.py:natural", transformer=True),
    Row(name="minilm_sst2_padded128", task="minilm_sst2.py:padded128", transformer=True),
    Row(name="stories260k", task="stories260k.py:task", transformer=True),
    Row(name="ultraface", task="ultraface.py:task"),
    Row(name="resnet18_speed", task="speed_only.py:resnet18"),
    Row(name="mobilenet_v2_speed", task="speed_only.py:mobilenet_v2"),
    Row(name="vit_tiny_speed", task="speed_only.py:vit_tiny", transformer=True),
)


@dataclass(frozen=True)
class Effort:
    """How much is done for a row: the search's budget, timed rounds, and proof examples for peers (None: all)."""

    budget: str
    rounds: int
    examples: int | None


class Contest:
    """One row in the making: its folder, its data, and what every contestant answered so far."""

    def __init__(self, row: Row, effort: Effort) -> None:
        self.row, self.effort = row, effort
        self.task = load_task(row.reference)
        metric = resolve(self.task.metric)
        self.parts = materialize(self.task.data, seed=0, needs_targets=metric.needs_targets)
        self.folder = CACHE / "breadth" / f"{row.name}-{_fingerprint(self.task, self.parts, effort)}"
        self.log = self.folder / "log"
        self.subject = _subject(row, self.task, self.parts, self.folder / "subject", effort.examples)
        self.failures: dict[str, str] = {}
        self.peers = [peer for peer in peers.PEERS if peer.suits(self.subject)]
        self.answers = self._peers_answers()
        self.original = self.answers[self.peers[0].name]
        self.metric = settled(metric, self.original, self._targets, self.original)

    def at(self, threads: int) -> dict[str, Any]:
        """Let temper search for so many threads, then time everyone: the row's entry for that number of threads."""
        place = self.folder / f"temper-{threads}-{_code(Path(temper.__file__).parent)}"
        goal = Goal(max_drop=LOSS, conditions=Conditions(threads=threads))
        result = optimize(
            self.row.reference,
            goal,
            budget=self.effort.budget,
            out=place,
            resume=place.exists(),
            allow_unproven=self.row.unproven,
        )
        artifacts = {TEMPER: place / "artifact", BASELINE: place / "baseline", AGAIN: place / "artifact"}
        answers, failures = dict(self.answers), dict(self.failures)
        kept = place.with_name(f"{place.name}-answers")
        kept.mkdir(exist_ok=True)
        for name in (TEMPER, BASELINE):
            answers[name] = self._answered("", artifacts[name], kept / artifacts[name].name)
        answers[AGAIN] = answers[TEMPER]
        contestants = {name: ("", folder) for name, folder in artifacts.items()}
        contestants |= {peer.name: (peer.name, self._place(peer)) for peer in self.peers if peer.name in answers}
        print(f"{self.row.name}: timing {len(contestants)} contestants at {threads} threads", flush=True)
        timings, failed = timed(self.subject, contestants, threads=threads, rounds=self.effort.rounds, log=self.log)
        failures |= failed
        shown = [(TEMPER, TEMPER, str(result.proof.row("chosen").title))]
        shown += [("", name, "") for name in (BASELINE, AGAIN)]
        shown += [(peer.column, peer.name, peer.variant) for peer in self.peers]
        return {
            "date": date.today().isoformat(),
            "environment": this_host().to_json(),
            "versions": {name: version(name) for name in LIBRARIES},
            "budget": self.effort.budget,
            "rounds": self.effort.rounds,
            "processes": PROCESSES,
            "verdict": result.proof.verdict.value,
            "reason": _reason(result),
            "contestants": [
                {"column": column, "name": name, "variant": variant, **self._measured(name, answers, timings, failures)}
                for column, name, variant in shown
            ],
        }

    def about(self) -> dict[str, Any]:
        """What stands in the row's file beside the entries for each number of threads."""
        return {
            "row": self.row.name,
            "title": self.task.name,
            "metric": self.metric.name,
            "max_drop": LOSS,
            "examples": len(self.subject.examples("proof")),
        }

    @property
    def _targets(self) -> Array | None:
        targets = self.parts.proof.targets
        return None if targets is None else targets[: self.effort.examples]

    def _place(self, peer: peers.Peer) -> Path:
        return self.folder / "peers" / peer.slug

    def _peers_answers(self) -> dict[str, Outputs]:
        """What each peer answers to the proof examples, at one thread; peers are built once and kept."""
        answers = {}
        for peer in self.peers:
            place = self._place(peer)
            try:
                if not place.exists():
                    print(f"{self.row.name}: building {peer.name}", flush=True)
                    unfinished = place.with_name(f"{peer.slug}.tmp")
                    shutil.rmtree(unfinished, ignore_errors=True)
                    unfinished.mkdir(parents=True)
                    built(self.subject, peer, unfinished, self.log)
                    unfinished.rename(place)
                answers[peer.name] = self._answered(peer.name, place, place / "answers")
            except Refused as error:
                print(f"{self.row.name}: {peer.name}: {error}", flush=True)
                self.failures[peer.name] = str(error)
        return answers

    def _answered(self, peer: str, folder: Path, outputs: Path) -> Outputs:
        """The contestant's answers, read where they were kept, else asked for. Raises: Refused."""
        marker = outputs.with_name(f"{outputs.name}.json")
        if not marker.exists():
            print(f"{self.row.name}: asking {peer or outputs.name}", flush=True)
            write_json(marker, predicted(self.subject, peer, folder, outputs, self.log))
        arrays = tuple(np.load(f"{outputs}_{index}.npy") for index in range(read_json(marker)))
        return arrays[0] if len(arrays) == 1 else arrays

    def _quality(self, answers: Outputs) -> Quality:
        return compare(self.metric, self.original, answers, self._targets, max_drop=LOSS, seed=0)

    def _measured(
        self, name: str, answers: dict[str, Outputs], timings: dict[str, list[Timing]], failures: dict[str, str]
    ) -> dict[str, Any]:
        """Quality and speed of one contestant, or why there is none."""
        if name not in timings:
            return {"failure": failures[name]}
        quality = self._quality(answers[name])
        return {
            "p50_s": float(np.median([each.latency().value for each in timings[name]])),
            "ratio": list(ratio(timings[name], timings[TEMPER])),
            "score": quality.score.value,
            "drop": quality.drop.value,
            "drop_bound": quality.drop.upper,
            "kept": bool(quality.drop.value <= LOSS),
        }


def _reason(result: Result) -> str:
    return (
        result.proof.judgements[0].reason if result.proof.judgements else "nothing better than the baseline was found"
    )


def _subject(row: Row, task: Task, parts: Parts, folder: Path, examples: int | None) -> Subject:
    """The row's files for the contestants, written once."""
    subject = Subject(folder)
    if (folder / ABOUT).exists():
        return subject
    folder.mkdir(parents=True, exist_ok=True)
    onnx = _onnx_file(task)
    for part in PARTS:
        store(folder, part, getattr(parts, part), examples if part == "proof" else None)
    unfinished = {
        "task": row.reference,
        "onnx": onnx,
        "names": _names(task, parts.proof, onnx),
        "axes": list(parts.proof.length_axes),
        "transformer": row.transformer,
    }
    write_json(folder / ABOUT, unfinished)
    try:
        export(subject)
    except BaseException:
        (folder / ABOUT).unlink()
        raise
    return subject


def _onnx_file(task: Task) -> str:
    """The file of a task whose model is one, else empty."""
    return str(task.model.path) if isinstance(task.model, OnnxFile) else ""


def _names(task: Task, examples: Examples, onnx: str) -> list[str]:
    """What the inputs are called, in the order in which the model takes them by position."""
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        return list(examples.names or (each.name for each in session.get_inputs()))
    import inspect

    taken = list(inspect.signature(task.module().forward).parameters)[: len(examples.inputs)]
    if examples.names and list(examples.names) != taken:
        raise SystemExit(f"the inputs {examples.names} are not in the order that forward takes them: {taken}")
    return taken


def _fingerprint(task: Task, parts: Parts, effort: Effort) -> str:
    """Eight digits that change with the model, the data, how peers are made, and the number of proof examples."""
    code = _code(Path(peers.__file__).parent)
    digest = sha256(repr((effort.examples, code, [version(name) for name in LIBRARIES])).encode())
    onnx = _onnx_file(task)
    weights = [] if onnx else [value.numpy() for value in task.module().state_dict().values()]
    digest.update(Path(onnx).read_bytes() if onnx else b"")
    for part in PARTS:
        weights += getattr(parts, part).inputs
    for array in weights:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:8]


def _code(package: Path) -> str:
    """Eight digits that change with the source of a package: what other code made is not taken for its own."""
    digest = sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def compete(row: Row, threads: Sequence[int], effort: Effort, folder: Path, again: bool) -> None:
    """Fill in what the row's file lacks."""
    file = folder / f"{row.name}.json"
    done = read_json(file)["threads"] if file.exists() else {}
    wanted = [number for number in threads if again or str(number) not in done]
    if not wanted:
        return
    contest = Contest(row, effort)
    for number in wanted:
        if again:
            for place in contest.folder.glob(f"temper-{number}-*"):
                shutil.rmtree(place)
        done[str(number)] = contest.at(number)
        write_json(file, {**contest.about(), "threads": dict(sorted(done.items()))})
        publish(folder)


def publish(folder: Path) -> None:
    """Make the page again from all rows that are finished, and the README's summary of what is published."""
    order = [row.name for row in ROWS]
    published = folder == breadth_page.RESULTS
    page = breadth_page.PAGE if published else folder / "breadth.md"
    page.write_text(breadth_page.page(folder, order), encoding="utf-8")
    if published:
        readme = breadth_page.README.read_text(encoding="utf-8")
        breadth_page.README.write_text(breadth_page.with_summary(readme, folder, order), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", nargs="*", choices=[row.name for row in ROWS], help="only these")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--budget", default="3m", help="of each search")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--examples", type=int, help="only so many proof examples for the peers: to try things out")
    parser.add_argument("--prepare", action="store_true", help="only build the peers and ask them, which times nothing")
    parser.add_argument("--again", action="store_true", help="also what is finished")
    parser.add_argument("--out", type=Path, default=breadth_page.RESULTS, help="the folder of the rows' files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    effort = Effort(options.budget, options.rounds, options.examples)
    for row in ROWS:
        if not options.row or row.name in options.row:
            try:
                if options.prepare:
                    Contest(row, effort)
                else:
                    compete(row, options.threads, effort, options.out, options.again)
            except Exception as error:  # noqa: BLE001 (a row that fails must not keep the others from being made)
                print(f"{row.name}: {type(error).__name__}: {error}", flush=True)
    publish(options.out)


if __name__ == "__main__":
    main()
