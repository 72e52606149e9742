"""What must hold for every runtime: what it loads computes what the graph computes, in integers where it says so."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from temper.core import artifact, catalog
from temper.core.artifact import Artifact
from temper.core.errors import ArtifactError, TrialError
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Array
from temper.core.technique import Technique, applied
from temper.graph.facts import has_quantizers
from temper.testing import plugs
from temper.testing.bits import contents, differences, outputs_of, same
from temper.testing.graphs import Example, examples
from temper.testing.onnx_files import onnx_examples
from temper.testing.techniques import context_of, prepare

EXACT, LOOSE = 1e-4, 5e-2
"""Greatest difference from the graph, relative to the output's scale: in float32, and in what the runtime prefers."""
STEPS, LOOSE_STEPS = 4 / 255, 0.05
"""The same for 8-bit integers, where one value that rounds the other way moves what follows by a step: in runtimes that
compute all else in float32, and in others, which round more of them the other way. In networks as small as these one
step before the last layer is a tenth of an output."""
BATCHES = (1, 3)
CLEAN = """
import runpy, sys, numpy, temper
runpy.run_path(sys.argv[1] + "/run.py")
model = temper.load(sys.argv[1], trust=True)
names = [spec.name for spec in model.schema.inputs]
outputs = model(**{name: numpy.load(f"{sys.argv[2]}/{name}.npy") for name in names})
assert sys.argv[3] == "torch" or "torch" not in sys.modules, "torch was imported"
"""


def check(runtime: type[Runtime]) -> None:
    """Assert that an installed runtime keeps its contract on the graphs of `temper.testing.graphs`.

    Raises: AssertionError; MissingExtra if its package is not installed, which is no fault of the runtime.
    """
    plugs.check(runtime, Runtime)
    check_declarations(runtime)
    runtime.require()
    small, *others = sorted(examples(), key=lambda example: len(example.graph.module.graph.nodes))
    for variant in plugs.variants(runtime):
        check_float(variant, small)
    for example in others:
        check_float(runtime(), example, cleanly=example is others[-1])
    files = onnx_examples() if runtime.reads_onnx else ()
    for example in files:
        check_float(runtime(), example)
    if runtime.integers is not None:
        counts = [check_integers(runtime(), example) for example in (small, *others, *files)]
        assert any(counts), f"{runtime.name} has integer kernels, and no technique makes a graph for them"


def check_declarations(runtime: type[Runtime]) -> None:
    """Assert that the class says which package it needs and, where it executes integers, in which scheme."""
    package = getattr(runtime, "package", "")
    assert package, f"{runtime.__name__} does not say which package must be importable"
    scheme = runtime.integers
    assert scheme is None or isinstance(scheme, IntegerScheme), f"{runtime.__name__}.integers is no IntegerScheme"
    assert isinstance(runtime().full_precision, bool), f"{runtime.__name__}.full_precision is no bool"


def check_float(runtime: Runtime, example: Example, *, cleanly: bool = False) -> None:
    """Assert that the exported float graph computes what the graph computes, from an artifact as well.

    With `cleanly`, the artifact is also run in a process of its own.
    """
    where = f"{runtime} on the {example.name} graph"
    with exported(runtime, example, where) as folder:
        check_agreement(runtime, example, folder, EXACT if runtime.full_precision else LOOSE, where)
        check_repeats(runtime, example, folder, where)
        check_ownership(runtime, example, folder, where)
        counts = runtime.executed(folder, example.graph.schema)
        assert counts, f"{where} accounts for no operator in `executed`"
        numbers = all(isinstance(count, int) and count > 0 for count in counts.values())
        assert numbers, f"{where} counts {dict(counts)} executed operators"
        check_artifact(runtime, example, folder, where)
        if cleanly:
            check_clean_process(runtime, example, folder, where)


def check_integers(runtime: Runtime, example: Example) -> bool:
    """Assert that what quantizing techniques make of the graph is executed in integers and agrees with the simulation.

    Returns whether there was such a technique for this graph.
    """
    quantized = list(_quantized(runtime, example))
    for technique, graph in quantized:
        where = f"{runtime} on the {example.name} graph after {technique}"
        simulated = Example(name=example.name, graph=graph, draw=example.draw)
        with exported(runtime, simulated, where) as folder:
            counts = runtime.executed(folder, graph.schema)
            assert any(each.startswith("int") for each in counts), (
                f"{where} executes no operator in integers: {dict(counts)}"
            )
            tolerance = STEPS if runtime.full_precision else LOOSE_STEPS
            check_agreement(runtime, simulated, folder, tolerance, where)
            check_repeats(runtime, simulated, folder, where)
    return bool(quantized)


@contextmanager
def exported(runtime: Runtime, example: Example, where: str) -> Iterator[Path]:
    """A folder that holds the exported graph; asserts that there is something in it and the graph is as it was."""
    inputs = example.inputs(2, seed=8)
    before = contents(example.graph, inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            runtime.export(example.graph, Path(folder))
        except TrialError as error:
            raise AssertionError(f"{where} cannot be exported: {error}") from error
        assert any(Path(folder).iterdir()), f"{where}: export wrote no file"
        changed = differences(before, contents(example.graph, inputs))
        assert not changed, f"{where}: export changed the graph: {changed}"
        yield Path(folder)


def check_agreement(runtime: Runtime, example: Example, folder: Path, tolerance: float, where: str) -> None:
    """Assert that outputs have the schema's form and differ from the graph's by at most the tolerance.

    `tolerance` is relative to the largest value of each output. Several batches are run, and inputs that are read-only
    or not contiguous, as a slice of a bigger array may be.
    """
    runner = runtime.load(folder, example.graph.schema, 1)
    for batch in BATCHES:
        inputs = example.inputs(batch, seed=10 + batch)
        expected = outputs_of(example.graph, inputs)
        for layout, arrays in _layouts(inputs):
            outputs = _run(runner, arrays, f"{where} at batch {batch} with {layout} inputs")
            for spec, output, wanted in zip(example.graph.schema.outputs, outputs, expected, strict=True):
                form = (output.dtype.name, output.shape)
                assert form == (spec.dtype, wanted.shape), f"{where} returns {form} for {spec}, not {wanted.shape}"
                error = float(np.abs(output - wanted).max() / np.abs(wanted).max())
                assert error <= tolerance, (
                    f"{where} at batch {batch} with {layout} inputs differs from the graph in {spec.name!r} by "
                    f"{error:.1e} of its scale, more than {tolerance:.1e}"
                )


def check_repeats(runtime: Runtime, example: Example, folder: Path, where: str) -> None:
    """Assert that two loads, and two runs of each, agree in every bit."""
    inputs = example.inputs(3, seed=20)
    runners = [runtime.load(folder, example.graph.schema, 1) for _ in range(2)]
    first, *others = [_run(runner, inputs, where) for runner in runners for _ in range(2)]
    assert all(same(first, each) for each in others), f"{where}: two runs of one model on one input disagree"


def check_ownership(runtime: Runtime, example: Example, folder: Path, where: str) -> None:
    """Assert that outputs are the caller's own, to keep and to overwrite, and that inputs are not written to."""
    runner = runtime.load(folder, example.graph.schema, 1)
    inputs, later = example.inputs(3, seed=30), example.inputs(3, seed=31)
    given = [array.copy() for array in inputs]
    outputs = _run(runner, inputs, where)
    kept = [output.copy() for output in outputs]
    _run(runner, later, where)
    assert same(outputs, kept), f"{where}: a later run changes arrays that an earlier one returned"
    assert all(output.flags.writeable for output in outputs), f"{where} returns arrays that cannot be written to"
    for output in outputs:
        output[...] = 1
    assert same(inputs, given), f"{where} changes its inputs, or returns arrays that share their memory"
    assert same(_run(runner, inputs, where), kept), f"{where}: writing to returned arrays changes what is returned next"


def check_artifact(runtime: Runtime, example: Example, folder: Path, where: str) -> None:
    """Assert that the folder becomes an artifact that opens, computes what its runner does and has a sound `run.py`."""
    schema, inputs = example.graph.schema, example.inputs(2, seed=40)
    expected = _run(runtime.load(folder, schema, 1), inputs, where)
    conditions, recipe = Conditions(batch=2), Recipe(runtime=runtime).to_json()
    artifact.write(folder, schema=schema, runtime=runtime, conditions=conditions, recipe=recipe, environment={})
    opened = Artifact.open(folder)
    assert opened.runtime == runtime, f"{where}: its artifact opens with {opened.runtime}"
    assert opened.schema == schema, f"{where}: its artifact opens with another schema"
    if runtime.native:
        refused = _is_refused(opened)
        assert refused, f"{where}: its artifact, which is native code, is loaded without anybody's trust"
    outputs = opened.load(trust=True)(*inputs)
    flat = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple) else (outputs,)
    assert same(tuple(flat), expected), f"{where}: its artifact computes something else than the runner"
    script = (folder / artifact.SCRIPT).read_text(encoding="utf-8")
    try:
        compile(script, artifact.SCRIPT, "exec")
    except SyntaxError as error:
        raise AssertionError(f"{where}: its run.py is no Python: {error}") from error


def _is_refused(opened: Artifact) -> bool:
    try:
        opened.load()
    except ArtifactError:
        return True
    return False


def check_clean_process(runtime: Runtime, example: Example, folder: Path, where: str) -> None:
    """Assert that `run.py` and `temper.load` work in a fresh process, without torch unless the runtime needs it."""
    with tempfile.TemporaryDirectory() as scratch:
        for spec, array in zip(example.graph.schema.inputs, example.inputs(2, seed=41)):
            np.save(Path(scratch) / f"{spec.name}.npy", array, allow_pickle=False)
        command = [sys.executable, "-c", CLEAN, str(folder), scratch, "torch" if runtime.needs_torch else ""]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    assert done.returncode == 0, f"{where}: its artifact fails in a clean process: {done.stderr.strip()[-1000:]}"


def _quantized(runtime: Runtime, example: Example) -> Iterator[tuple[Technique, Graph]]:
    """The graphs with quantizers that techniques of the catalog make for this runtime, each with its defaults."""
    context = context_of(example, runtime)
    for name in catalog.names(Technique):
        technique = catalog.get(Technique, name)
        prepared = prepare(technique, example, context) if has_quantizers in technique.leaves else None
        if prepared is not None:
            try:
                yield technique(), applied(technique(), prepared.graph, context)
            except TrialError:
                continue


def _layouts(inputs: Sequence[Array]) -> Iterator[tuple[str, Sequence[Array]]]:
    """The same values as they may lie in memory."""
    yield "usual", inputs
    frozen = [array.copy() for array in inputs]
    for array in frozen:
        array.flags.writeable = False
    yield "read-only", frozen
    yield "strided", [np.repeat(array, 2, axis=-1)[..., ::2] for array in inputs]
    yield "reversed", [np.ascontiguousarray(array[..., ::-1])[..., ::-1] for array in inputs]


def _run(runner: Runner, inputs: Sequence[Array], where: str) -> tuple[Array, ...]:
    try:
        outputs = runner.run(*inputs)
    except Exception as error:
        raise AssertionError(f"{where} crashed with {type(error).__name__}: {error}") from error
    arrays = isinstance(outputs, tuple) and all(isinstance(output, np.ndarray) for output in outputs)
    assert arrays, f"{where} returns {type(outputs).__name__}, not a tuple of NumPy arrays"
    return outputs
