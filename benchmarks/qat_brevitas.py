"""ResNet-20 by Brevitas, trained with its quantizers as temper's is: the same images, epochs, optimizer and schedule.

Weights have a learned scale for each channel, initialized from their largest value, and what layers read has a learned
scale, initialized from percentiles of the first batches. First and last layer have 8 bits; shortcuts and residual sums
stay in float, which temper rounds to 8 bits. Learning rates are temper's, and the statistics of batch norms are taken
anew at the end, as temper does.
"""

import math
from itertools import islice

import torch
from brevitas.core.scaling import ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerChannelFloat
from torch import Tensor, nn
from torch.nn import functional as F

import cifar10
from temper.core.training import Training
from temper.techniques.quantization.aware_training import EIGHT_BIT_RATE, RE_ESTIMATED, SGD_RATES

MOMENTUM, DECAY, WARMUP = 0.9, 1e-4, 0.05
COLLECTED = 100
"""Steps whose activations set the initial scales; Brevitas' own 300 are most of a first epoch."""
ENDS_BITS = 8


def trained(bits: int, training: Training, *, epochs: int, batch: int, seed: int) -> nn.Module:
    """The network after the last epoch, in evaluation mode, on the device that training asks for."""
    torch.manual_seed(seed)
    model = QuantResNet(bits)
    model.load_state_dict(cifar10.trained("resnet20").state_dict(), strict=False)
    model.train().to(training.device)
    first = training.batches(batch, 0)
    for (images,), _ in first:
        model(images.to(training.device))  # makes the parameters that come from statistics
        break
    decaying = {name: each.dim() > 1 and "scaling_impl" not in name for name, each in model.named_parameters()}
    decays = [each for name, each in model.named_parameters() if decaying[name]]
    others = [each for name, each in model.named_parameters() if not decaying[name]]
    rate = SGD_RATES.get(bits, EIGHT_BIT_RATE)
    groups = [{"params": decays, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM, nesterov=True)
    steps = epochs * len(first)

    def factor(step: int) -> float:
        share = (step + 1) / steps
        return min(1.0, share / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    network = model
    for epoch in range(epochs):
        if epoch == 1 and training.device == "cpu":  # the first has steps of two kinds: statistics, then scales
            network = torch.compile(model, dynamic=False)
        total = torch.zeros((), device=training.device)
        for (images,), labels in training.batches(batch, epoch):
            loss = F.cross_entropy(network(images.to(training.device)), labels.to(training.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        training.tell(f"epoch {epoch + 1} of {epochs}: loss {float(total) / len(first):.4f}")
    _re_estimate(model, training, batch, epochs)
    return model.eval()


def _re_estimate(model: nn.Module, training: Training, batch: int, epoch: int) -> None:
    """The statistics of batch norms, as means over some batches."""
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.reset_running_stats()
            each.momentum = None
    with torch.no_grad():
        for (images,), _ in islice(training.batches(batch, epoch), RE_ESTIMATED):
            model(images.to(training.device))


class QuantBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, bits: int) -> None:
        super().__init__()
        self.read = _relu(bits)
        self.conv1 = _conv(width_in, width, stride, bits)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = _relu(bits)
        self.conv2 = _conv(width, width, 1, bits)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(self.read(x))))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class QuantResNet(nn.Module):
    """The network of `cifar10.ResNet`, with the same names of parameters."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.images = QuantIdentity(bit_width=ENDS_BITS)
        self.conv1 = _conv(3, 16, 1, ENDS_BITS)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, bits)
        self.layer2 = _stage(16, 32, 2, bits)
        self.layer3 = _stage(32, 64, 2, bits)
        self.pooled = QuantIdentity(bit_width=ENDS_BITS)
        self.linear = QuantLinear(
            64,
            10,
            bias=True,
            weight_quant=Int8WeightPerChannelFloat,
            weight_bit_width=ENDS_BITS,
            weight_scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.images(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pooled(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def _stage(width_in: int, width: int, stride: int, bits: int) -> nn.Sequential:
    first = QuantBlock(width_in, width, stride, bits)
    return nn.Sequential(first, *(QuantBlock(width, width, 1, bits) for _ in range(2)))


def _conv(width_in: int, width: int, stride: int, bits: int) -> QuantConv2d:
    return QuantConv2d(
        width_in,
        width,
        3,
        stride=stride,
        padding=1,
        bias=False,
        weight_quant=Int8WeightPerChannelFloat,
        weight_bit_width=bits,
        weight_scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS,
    )


def _relu(bits: int) -> QuantReLU:
    return QuantReLU(bit_width=bits, collect_stats_steps=COLLECTED)
