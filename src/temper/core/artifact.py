"""The artifact: a folder with the exported model, its manifest, its proof and a script that runs it.

Opening one needs the runtime and NumPy only. Nothing in it is unpickled or evaluated, every file is checked against
its sha256 first, and a file that lies outside of the folder, or in it without being listed, is refused. What is
native code itself is loaded only for those who say that they trust it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from temper.core import catalog
from temper.core.errors import ArtifactError, UsageError
from temper.core.goal import Conditions
from temper.core.proof import Proof
from temper.core.runtime import Runner, Runtime
from temper.core.schema import Array, Outputs, Schema

FORMAT = 1
MANIFEST, PROOF, SCRIPT, REPORT = "manifest.json", "proof.json", "run.py", "report.html"
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, RecursionError)
"""What reading JSON of a wrong shape may raise: it may come from anywhere."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact whose files have been checked: `schema`, `runtime`, the conditions it was made for, its recipe."""

    folder: Path
    schema: Schema
    runtime: Runtime
    conditions: Conditions
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    files: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open the artifact in a folder, or in the `artifact` folder of a run.

        Raises: ArtifactError if a file is missing, altered, not listed, from a newer temper or outside of the folder.
        """
        folder = located(Path(folder))
        manifest = _manifest(folder)
        _check_files(folder, manifest["files"])
        try:
            runtime = catalog.get(Runtime, manifest["runtime"]["name"]).from_json(manifest["runtime"])
            return cls(
                folder=folder,
                schema=Schema.from_json(manifest["schema"]),
                runtime=runtime,
                conditions=Conditions(**manifest["conditions"]),
                recipe=manifest["recipe"],
                environment=manifest["environment"],
                files=manifest["files"],
            )
        except (*DAMAGED, UsageError) as error:
            raise damaged(folder / MANIFEST, error) from error

    @property
    def size_bytes(self) -> int:
        """What the model's own files take on disk: without manifest, proof, report and script."""
        extra = (PROOF, SCRIPT, REPORT)
        return sum((self.folder / name).stat().st_size for name in self.files if name not in extra)

    def proof(self) -> Proof | None:
        """What was proven of it, or None if it carries no proof. Raises: ArtifactError if that is damaged."""
        if PROOF not in self.files:
            return None
        file = self.folder / PROOF
        try:
            return Proof.from_json(json.loads(file.read_text(encoding="utf-8")))
        except DAMAGED as error:
            raise damaged(file, error) from error

    def load(self, threads: int | None = None, *, trust: bool = False) -> "Model":
        """Load the model, pinned to so many threads (those it was made for, unless said otherwise).

        Raises: ArtifactError if it holds native code and `trust` is false; MissingExtra if its runtime is not there.
        """
        self.check_trust(trust)
        self.runtime.require()
        runner = self.runtime.load(self.folder, self.schema, threads or self.conditions.threads)
        return Model(runner, self.schema)

    def check_trust(self, trust: bool) -> None:
        """Raise ArtifactError if the model is native code and nobody says that it may be trusted."""
        if self.runtime.native and not trust:
            raise ArtifactError(
                f"{self.folder} holds native code for {self.runtime.name}, which can do all that you can do as soon as "
                "it is loaded; checksums tell that it is unaltered, not who made it. If you made it, or trust who did, "
                "say so: temper.load(folder, trust=True), or --trust on the command line"
            )


class Model:
    """A loaded artifact: call it with NumPy arrays, by position or by name."""

    def __init__(self, runner: Runner, schema: Schema) -> None:
        self.schema = schema
        self._run = runner.run
        self._names = tuple(spec.name for spec in schema.inputs)
        self._single = self._quick_check(schema)
        self._nested = schema.nesting != "tensor"

    def __call__(self, *arrays: Array, **named: Array) -> Outputs:
        """The model's outputs, nested as the original's: an array, a tuple or a dict of arrays.

        Raises: UsageError if an input is missing or has the wrong shape or dtype.
        """
        if named:
            arrays = self._positional(arrays, named)
        if not self._is_fine(arrays):
            raise UsageError(str(self.schema.mismatch(arrays)))
        outputs = self._run(*arrays)
        return self.schema.nested(outputs) if self._nested else outputs[0]

    def _is_fine(self, arrays: tuple[Array, ...]) -> bool:
        # The usual call, one array of the right dtype and shape, is recognized without the general check.
        if self._single is not None and len(arrays) == 1:
            array, (dtype, inner) = arrays[0], self._single
            if type(array) is np.ndarray and array.dtype is dtype and array.shape[1:] == inner:
                return True
        return self.schema.mismatch(arrays) is None

    @staticmethod
    def _quick_check(schema: Schema) -> tuple[np.dtype[Any], tuple[int | str | None, ...]] | None:
        if len(schema.inputs) == 1 and schema.dynamic_batch and not schema.dynamic_length:
            return np.dtype(schema.inputs[0].dtype), schema.inputs[0].shape[1:]
        return None

    def _positional(self, arrays: tuple[Array, ...], named: Mapping[str, Array]) -> tuple[Array, ...]:
        rest = self._names[len(arrays) :]
        if set(rest) != set(named):
            wanted = ", ".join(self._names)
            raise UsageError(f"the model takes the inputs {wanted}; by name came {', '.join(named)}")
        return (*arrays, *(named[name] for name in rest))


def load(folder: Path | str, threads: int | None = None, *, trust: bool = False) -> Model:
    """Load an artifact, ready to be called with NumPy arrays; native code only with `trust`.

    Raises: ArtifactError if it must not be loaded; MissingExtra if its runtime is not installed.
    """
    return Artifact.open(folder).load(threads, trust=trust)


def located(folder: Path) -> Path:
    """The artifact's own folder, given it or the run's folder that holds it. Raises: ArtifactError."""
    for candidate in (folder, folder / "artifact"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise ArtifactError(f"{folder} holds no artifact: there is no {MANIFEST} in it, nor in {folder / 'artifact'}")


def write(
    folder: Path,
    *,
    schema: Schema,
    runtime: Runtime,
    conditions: Conditions,
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> None:
    """Turn a folder of exported files into an artifact: write its script, then its manifest."""
    (folder / SCRIPT).write_text(_script(schema, runtime, conditions), encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "schema": schema.to_json(),
        "runtime": runtime.to_json(),
        "conditions": conditions.to_json(),
        "recipe": dict(recipe),
        "environment": dict(environment),
        "files": _digests(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def seal(folder: Path) -> None:
    """Take the files that now lie in the artifact's folder, its proof among them, into its manifest.

    The report stays beside the artifact, in the run's folder: it is larger than many a model.
    """
    manifest = _manifest(folder)
    manifest["files"] = _digests(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def example_inputs(schema: Schema, batch: int, length: int | None = None) -> tuple[Array, ...]:
    """Inputs that fit the schema, made up: normal numbers, and zeros for integers.

    Where the length is dynamic and none is given, they are 16 long.
    """
    generator = np.random.default_rng(0)
    arrays = []
    for spec in schema.inputs:
        shape, dtype = spec.sized(batch, length), np.dtype(spec.dtype)
        arrays.append(generator.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype))
    return tuple(arrays)


def damaged(file: Path, why: object) -> ArtifactError:
    """The error to raise for a file of JSON that is none, or of a wrong shape."""
    reason = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else why
    return ArtifactError(f"{file} is damaged ({' '.join(str(reason).split())[:300]}). Get the artifact again")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): sha256(file) for file in _entries(folder) if file.is_file()}


def _entries(folder: Path) -> list[Path]:
    """All that lies in the folder and below it, links included, but for its manifest and for plain folders."""
    found = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    return sorted(each for each in found if each != folder / MANIFEST)


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
        newer = version > FORMAT
        files = manifest["files"]
    except (*DAMAGED, OSError) as error:
        raise damaged(file, error) from error
    if newer:
        raise ArtifactError(
            f"{file} has format {version}, and this temper reads up to {FORMAT}. Update it: pip install -U temper-ml"
        )
    for name in ("files", "recipe", "environment"):
        if not isinstance(manifest.get(name), dict):
            raise damaged(file, f"its {name!r} is not a table")
    if not set(files) - {PROOF, SCRIPT, REPORT}:
        raise damaged(file, "its list of files names no model")
    return dict(manifest)


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    root = folder.resolve()
    for name, digest in files.items():
        try:
            file = (folder / name).resolve()
            there = file.is_file()
        except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of links
            raise damaged(folder / MANIFEST, f"it names {name[:100]!r}: {error}") from error
        if not file.is_relative_to(root):
            raise ArtifactError(f"{folder / MANIFEST} names a file outside of its folder, {name!r}: it is not loaded")
        if not there:
            raise ArtifactError(f"{file} is missing: the artifact is incomplete. Get it again")
        if sha256(file) != digest:
            raise ArtifactError(f"{file} is not the file that was measured (its sha256 differs): it is not loaded")
    for file in _entries(folder):
        # A runtime may read what lies beside its model, such as the external data of an ONNX file.
        if file.relative_to(folder).as_posix() not in files:
            raise ArtifactError(
                f"{file} is not listed in {MANIFEST}, so nobody vouches for it: the artifact is not loaded. Remove the "
                "file if it is yours, or get the artifact again"
            )


def _script(schema: Schema, runtime: Runtime, conditions: Conditions) -> str:
    package, *body = runtime.script(schema, conditions.threads).rstrip().split("\n")
    lines = [
        '"""Run the model on made-up inputs: replace them with your own."""',
        "",
        "from pathlib import Path",
        "",
        *sorted(("import numpy", package)),
        "",
        "HERE = Path(__file__).resolve().parent",
        *_made_up(schema, conditions),
        *body,
        "print([(output.shape, output.dtype) for output in outputs])",
    ]
    return "\n".join(lines) + "\n"


def _made_up(schema: Schema, conditions: Conditions) -> list[str]:
    """The lines that make `inputs`: a table, because an input may be called as anything else in the script is."""
    entries = []
    for spec in schema.inputs:
        sizes = spec.sized(conditions.batch, conditions.length)
        entries.append(f'{json.dumps(spec.name, ensure_ascii=False)}: numpy.zeros({sizes}, "{spec.dtype}")')
    if len(entries) == 1:
        return [f"inputs = {{{entries[0]}}}"]
    return ["inputs = {", *(f"    {entry}," for entry in entries), "}"]
