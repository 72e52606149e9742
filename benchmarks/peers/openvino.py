"""OpenVINO: the float file at its default precision or in float32, and quantized by nncf as documented."""

from pathlib import Path
from typing import Any

import numpy as np

from peers import CALIBRATION, Call
from peers.subject import Subject
from temper.core.schema import Array

FILE = "model.xml"


def build(subject: Subject, folder: Path, *, preset: str = "", fast_bias_correction: bool = True, **_: Any) -> None:
    """For quantized variants: calibrate on single examples, with nncf's scheme for transformers where it is one."""
    if not preset:
        return
    import nncf
    import openvino

    samples = [dict(zip(subject.names, example)) for example in subject.calibration(CALIBRATION)]
    quantized = nncf.quantize(
        openvino.Core().read_model(subject.float_file),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset(preset),
        model_type=nncf.ModelType.TRANSFORMER if subject.transformer else None,
        fast_bias_correction=fast_bias_correction,
        subset_size=len(samples),
    )
    openvino.save_model(quantized, folder / FILE, compress_to_fp16=False)


def load(subject: Subject, folder: Path, threads: int, *, preset: str = "", precision: str = "", **_: Any) -> Call:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    model = openvino.Core().compile_model(folder / FILE if preset else subject.float_file, "CPU", settings)
    places = [next(index for index, port in enumerate(model.inputs) if name in port.names) for name in subject.names]
    infer, outputs = model.create_infer_request().infer, range(len(model.outputs))

    def call(*arrays: Array) -> tuple[Array, ...]:
        results = infer(dict(zip(places, arrays)), share_inputs=True, share_outputs=True)
        return tuple(np.array(results[index]) for index in outputs)

    return call
