"""Well-known architectures in plain PyTorch, with random weights: for speed, where no trained weights are at hand.

References: He et al. 2015 (arXiv 1512.03385); Sandler et al. 2018 (arXiv 1801.04381); Touvron et al. 2020 (DeiT, arXiv
2012.12877), whose smallest model is called ViT-tiny.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _convolution(
    wide: int, width: int, size: int, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.Identity
) -> nn.Sequential:
    conv = nn.Conv2d(wide, width, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), act=act()))


class _BasicBlock(nn.Module):
    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(wide, width, 3, stride, act=nn.ReLU)
        self.conv2 = _convolution(width, width, 3)
        same = stride == 1 and wide == width
        self.shortcut = nn.Identity() if same else _convolution(wide, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """11.7 M parameters, 1.8 G multiplications for an image of 224 x 224."""
    layers: list[nn.Module] = [_convolution(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    wide = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_BasicBlock(wide, width, stride), _BasicBlock(width, width, 1)]
        wide = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 1000))


class _InvertedResidual(nn.Module):
    def __init__(self, wide: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = wide * expansion
        widened = [_convolution(wide, middle, 1, act=nn.ReLU6)] if expansion > 1 else []
        depthwise = _convolution(middle, middle, 3, stride, groups=middle, act=nn.ReLU6)
        self.body = nn.Sequential(*widened, depthwise, _convolution(middle, width, 1))
        self.residual = stride == 1 and wide == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    """3.5 M parameters, 0.3 G multiplications for an image of 224 x 224; most convolutions are depthwise."""
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2, act=nn.ReLU6)]
    wide = 32
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, width, count, stride in stages:
        for index in range(count):
            layers.append(_InvertedResidual(wide, width, stride if index == 0 else 1, expansion))
            wide = width
    head = (_convolution(wide, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, *head)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 16 x 16 pixels, a class token, 12 layers; inputs (n, 3, 224, 224), logits (n, 1000)."""

    def __init__(self, width: int = 192, layers: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 197, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def vit_tiny() -> nn.Module:
    """5.7 M parameters, 1.3 G multiplications for an image of 224 x 224."""
    return VisionTransformer()
