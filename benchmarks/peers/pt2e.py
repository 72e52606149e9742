"""torchao's PT2E quantization for x86: X86InductorQuantizer with its defaults, compiled by Inductor with freezing."""

from pathlib import Path

import torch

from peers import CALIBRATION, Call
from peers.pytorch import compiled_call, prepare
from peers.subject import Subject


def build(subject: Subject, folder: Path) -> None:
    """Nothing is kept: the model is calibrated and compiled in the process that runs it."""


def load(subject: Subject, folder: Path, threads: int) -> Call:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepare(threads)
    samples = [subject.tensors(example) for example in subject.calibration(CALIBRATION)]
    largest = max(samples, key=lambda tensors: tensors[0].numel())
    exported = torch.export.export(subject.module(), largest, dynamic_shapes=subject.dynamic_shapes()).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for sample in samples:
        prepared(*sample)
    converted = move_exported_model_to_eval(convert_pt2e(prepared))
    return compiled_call(converted, subject, threads)
