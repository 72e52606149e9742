"""ResNet-20 on JPEG CIFAR-10: temper against nncf.quantize in OpenVINO and ONNX Runtime's static quantizer.

    python benchmarks/peers.py [--budget 10m] [--out benchmarks/peers.md]

All calibrate on the same 512 training images, are timed in the same interleaved rounds (batch 1, one thread), and are
scored on the same 8,000 test images. Needs the extras `openvino` and `bench`, and the data that TEMPER_DATA names.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(Path(__file__).parent / "tasks"))

import numpy as np
import resnet20_cifar10
import torch

from contest import contest
from table import header, markdown
from temper import Goal, Result, optimize
from temper.core.schema import Array
from temper.measure.statistics import latency_ratio, mean_interval, paired_drop

TASK = Path(resnet20_cifar10.__file__)
LIMIT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    task = resnet20_cifar10.task()
    model = task.module()
    images, labels = task.data.proof
    calibration = task.data.calibration
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.save(place / "proof.npy", images)
        result = optimize(f"{TASK}:task", Goal(max_drop=LIMIT), budget=options.budget, out=place / "run")
        contestants = _contestants(model, calibration, place, result)
        timings, predictions = contest(contestants, place / "proof.npy")
    original = _eager(model, images)
    rows = _rows(original, labels, timings, predictions)
    text = [header(__doc__.strip().split("\n")[0], f"python benchmarks/peers.py --budget {options.budget}")]
    text.append(f"The proof's verdict is **{result.proof.verdict}**: {result.proof.judgements[0].reason}.")
    text.append(f"What temper chose: `{result.proof.row('chosen').title}`.")
    text.append(markdown(("contestant", "accuracy", "drop (95 % bound)", "p50 ms", "time against temper"), rows))
    options.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(options.out.read_text())


def _contestants(model: torch.nn.Module, calibration: Array, place: Path, result: Result) -> dict[str, dict]:
    float_file = _float_onnx(model, place)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return {
        "temper": {"kind": "temper", "path": str(result.artifact.folder)},
        "temper's baseline (best float runtime)": {"kind": "temper", "path": str(place / "run" / "baseline")},
        "OpenVINO, float32": {"kind": "openvino", "path": float_file, "options": exact},
        "ONNX Runtime, float32": {"kind": "onnxruntime", "path": float_file},
        "nncf.quantize in OpenVINO": {"kind": "openvino", "path": _nncf(float_file, calibration, place)},
        "ONNX Runtime static quantizer": {"kind": "onnxruntime", "path": _ort_static(float_file, calibration, place)},
        "temper again (noise)": {"kind": "temper", "path": str(result.artifact.folder)},
    }


def _float_onnx(model: torch.nn.Module, place: Path) -> str:
    file = place / "float.onnx"
    batch = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        model, (torch.zeros(2, 3, 32, 32),), file, dynamo=True, dynamic_shapes=({0: batch},), external_data=False
    )
    return str(file)


def _nncf(float_file: str, calibration: Array, place: Path) -> str:
    """nncf's documented way: its defaults, on the calibration images one by one."""
    import nncf
    import openvino

    samples = [image[None] for image in calibration]
    quantized = nncf.quantize(openvino.Core().read_model(float_file), nncf.Dataset(samples), subset_size=len(samples))
    openvino.save_model(quantized, place / "nncf.xml", compress_to_fp16=False)
    return str(place / "nncf.xml")


def _ort_static(float_file: str, calibration: Array, place: Path) -> str:
    """ONNX Runtime's documented way for x86 with VNNI: pre-processed, QDQ, unsigned activations, scales per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter([{"x": image[None]} for image in calibration])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.samples, None)

    quant_pre_process(float_file, place / "pre.onnx", skip_symbolic_shape=True)
    quantize_static(
        place / "pre.onnx",
        place / "ort.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return str(place / "ort.onnx")


def _eager(model: torch.nn.Module, images: Array) -> Array:
    with torch.inference_mode():
        return np.concatenate([model(part).numpy() for part in torch.from_numpy(images).split(250)])


def _rows(original: Array, labels: Array, timings: dict, predictions: dict) -> list[tuple[str, ...]]:
    before = (original.argmax(1) == labels).astype(float)
    rows = []
    for name, outputs in predictions.items():
        after = (outputs.argmax(1) == labels).astype(float)
        test, (low, high) = paired_drop(before, after, max_drop=LIMIT), mean_interval(after)
        ratio = latency_ratio(timings["temper"].blocks, timings[name].blocks)
        rows.append(
            (
                name,
                f"{after.mean():.4f} ({low:.4f} to {high:.4f})",
                f"{test.drop:+.4f} (under {test.upper:+.4f})",
                f"{np.median(timings[name].calls) * 1e3:.3f}",
                f"{ratio.ratio:.3f} ({ratio.lower:.3f} to {ratio.upper:.3f})",
            )
        )
    return rows


if __name__ == "__main__":
    main()
