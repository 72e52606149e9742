"""ONNX Runtime: the float file, its static quantizer, and its dynamic one, which it recommends for transformers."""

from collections.abc import Iterator
from pathlib import Path

from peers import CALIBRATION, Call
from peers.subject import Subject
from temper.core.schema import Array

FILE = "model.onnx"


def build(subject: Subject, folder: Path, *, quantized: str = "") -> None:
    if not quantized:
        return
    prepared = folder / "prepared.onnx"
    _prepare(subject.float_file, prepared)
    if quantized == "static":
        _static(subject, prepared, folder / FILE)
    else:
        _dynamic(prepared, folder / FILE)
    prepared.unlink()


def load(subject: Subject, folder: Path, threads: int, *, quantized: str = "") -> Call:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    file = folder / FILE if quantized else subject.float_file
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    run, names = session.run, subject.names
    return lambda *arrays: tuple(run(None, dict(zip(names, arrays))))


def _prepare(source: Path, target: Path) -> None:
    """The documented pre-processing; symbolic shape inference is left out where it fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, target)
    except Exception:  # noqa: BLE001 (it raises whatever its own code trips over)
        quant_pre_process(source, target, skip_symbolic_shape=True)


def _static(subject: Subject, prepared: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        prepared,
        target,
        _reader(subject),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _reader(subject: Subject) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples: Iterator[tuple[Array, ...]] = iter(subject.calibration(CALIBRATION))

        def get_next(self) -> dict[str, Array] | None:
            sample = next(self.samples, None)
            return None if sample is None else dict(zip(subject.names, sample))

    return Reader()


def _dynamic(prepared: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(prepared)
    # Shapes that pre-processing wrote down contradict those of the rewritten graph.
    del model.graph.value_info[:]
    quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
