"""The networks in plain torch, under the names their libraries give them.

`ressl_tf.interop` is tested against these: torchvision's ResNets, detectron2's
naming of the same, timm's `tf_` networks. What the libraries themselves call
things is in `data/torch_names.json`. Each network maps (B, 3, H, W) to pooled
features by `features`; called, it gives logits, or those features where
`num_classes` is None.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

# A residual block's convolutions: (kernel, channels as multiple of its stage's)
BASIC = ((3, 1), (3, 1))
BOTTLENECK = ((1, 1), (3, 1), (1, 4))
WIDE_BOTTLENECK = ((1, 2), (3, 2), (1, 4))
RESNETS = {
    "resnet18": ((2, 2, 2, 2), BASIC),
    "resnet34": ((3, 4, 6, 3), BASIC),
    "resnet50": ((3, 4, 6, 3), BOTTLENECK),
    "resnet101": ((3, 4, 23, 3), BOTTLENECK),
    "resnet152": ((3, 8, 36, 3), BOTTLENECK),
    "wide_resnet50_2": ((3, 4, 6, 3), WIDE_BOTTLENECK),
    "wide_resnet101_2": ((3, 4, 23, 3), WIDE_BOTTLENECK),
}
# Names of the stem, the stages, a shortcut's convolution, the classifier.
LAYOUTS = {
    "torchvision": ("conv1", "layer{0}", "downsample.0", "fc"),
    "detectron2": ("stem.conv1", "res{1}", "shortcut", "linear"),
}


def _multiple_of_8(channels):
    """The nearest multiple that is not below 9/10 of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _squeeze_inputs(inputs, _):
    return inputs // 4


def _squeeze_expanded(_, expanded):
    return _multiple_of_8(expanded / 4)


# name -> how many times as deep as B0
EFFICIENTNETS = {"tf_efficientnet_b0": 1.0, "tf_efficientnet_b1": 1.1}
# A stage: kernel, stride, channels out, expansion of each of its blocks,
# channels of squeeze-and-excitation, activation.
EFFICIENTNET_STAGES = (
    (3, 1, 16, (1,), _squeeze_inputs, F.silu),
    (3, 2, 24, (6,) * 2, _squeeze_inputs, F.silu),
    (5, 2, 40, (6,) * 2, _squeeze_inputs, F.silu),
    (3, 2, 80, (6,) * 3, _squeeze_inputs, F.silu),
    (5, 1, 112, (6,) * 3, _squeeze_inputs, F.silu),
    (5, 2, 192, (6,) * 4, _squeeze_inputs, F.silu),
    (3, 1, 320, (6,), _squeeze_inputs, F.silu),
)
MOBILENET_V3_STAGES = (
    (3, 1, 16, (1,), None, F.relu),
    (3, 2, 24, (4, 3), None, F.relu),
    (5, 2, 40, (3, 3, 3), _squeeze_expanded, F.relu),
    (3, 2, 80, (6, 2.5, 2.3, 2.3), None, F.hardswish),
    (3, 1, 112, (6, 6), _squeeze_expanded, F.hardswish),
    (5, 2, 160, (6, 6, 6), _squeeze_expanded, F.hardswish),
)


@torch.no_grad()
def randomise(network, seed=0, size=64):
    """Leaves no value where it could hide a mistake; returns the network.

    Statistics are those of a batch of noise, then disturbed: drawn at random
    they would let activations grow from block to block until nothing that is
    added to them counts.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        else:
            low = 0.5 if name.endswith("weight") else -0.5
            value.uniform_(low, low + 1, generator=generator)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum, training = norms[0].momentum, network.training
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.randn(4, 3, size, size, generator=generator))
    network.train(training)
    for norm in norms:
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
        noise = torch.rand(2, norm.num_features, generator=generator)
        norm.running_mean += (0.4 * noise[0] - 0.2) * norm.running_var.sqrt()
        norm.running_var *= 0.7 + 0.7 * noise[1]
    return network


class _Network(nn.Module):
    """Modules by their path, since the names are what matters here."""

    conv, epsilon = nn.Conv2d, 1e-5

    def put(self, path, module):
        *parents, name = path.split(".")
        parent = self
        for step in parents:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = getattr(parent, step)
        parent.add_module(name, module)

    def put_conv(self, paths, inputs, outputs, kernel=1, stride=1, groups=1):
        """A convolution without bias, and its batch normalisation."""
        shape = (inputs, outputs, kernel, stride, kernel // 2, 1, groups)
        self.put(paths[0], self.conv(*shape, bias=False))
        self.put(paths[1], nn.BatchNorm2d(outputs, eps=self.epsilon))
        return paths

    def put_classifier(self, path, inputs, num_classes):
        if num_classes is not None:
            self.put(path, nn.Linear(inputs, num_classes))
        return () if num_classes is None else (path,)

    def run(self, x, paths, activation=None):
        for path in paths:
            x = self.get_submodule(path)(x)
        return x if activation is None else activation(x)


class ResNet(_Network):
    """torchvision's, and the same of other widths and stems.

    `layout="detectron2"` has detectron2's names (STRIDE_IN_1X1: False).
    """

    def __init__(
        self,
        name,
        num_classes=1000,
        width=64,
        stem="imagenet",
        layout="torchvision",
    ):
        super().__init__()
        stem_name, stage_name, shortcut, classifier = LAYOUTS[layout]
        self.layout = layout
        shape = (width, 7, 2) if stem == "imagenet" else (width, 3, 1)
        self.stem_paths = self.put_conv(self.pair(stem_name), 3, *shape)
        self.pool = {"imagenet": True, "small": True, "cifar": False}[stem]
        depths, convs = RESNETS[name]
        inputs, self.plan = width, []
        for stage, depth in enumerate(depths):
            for index in range(depth):
                block = f"{stage_name.format(stage + 1, stage + 2)}.{index}."
                stride = 2 if stage > 0 and index == 0 else 1
                channels, remaining, pairs = inputs, stride, []
                for i, (kernel, factor) in enumerate(convs, start=1):
                    step = remaining if kernel == 3 else 1
                    remaining //= step  # the first 3x3 takes the stride
                    shape = (factor * width * 2**stage, kernel, step)
                    pairs.append(self.pair(f"{block}conv{i}"))
                    self.put_conv(pairs[-1], channels, *shape)
                    channels = shape[0]
                projection = ()
                if stride > 1 or inputs != channels:
                    projection = self.pair(block + shortcut)
                    self.put_conv(projection, inputs, channels, 1, stride)
                self.plan.append((pairs, projection))
                inputs = channels
        self.last = self.put_classifier(classifier, inputs, num_classes)

    def pair(self, conv):
        """Paths of a convolution and of its batch normalisation."""
        if self.layout == "detectron2":
            return conv, f"{conv}.norm"
        head, _, last = conv.rpartition(".")
        norm = "1" if last == "0" else last.replace("conv", "bn")
        return conv, f"{head}.{norm}".lstrip(".")

    def features(self, images):
        x = self.run(images, self.stem_paths, F.relu)
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for (*pairs, last), projection in self.plan:
            shortcut = self.run(x, projection)
            for pair in pairs:
                x = self.run(x, pair, F.relu)
            x = F.relu(self.run(x, last) + shortcut)
        return x.mean((2, 3))

    def forward(self, images):
        return self.run(self.features(images), self.last)


class _SameConv(nn.Conv2d):
    """TensorFlow's padding: the odd pixel goes to the bottom and the right, so
    that how much goes where depends on the size of the image.
    """

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for size in (x.shape[3], x.shape[2]):  # F.pad begins with the last axis
            last = (math.ceil(size / stride) - 1) * stride
            total = max(0, last + kernel - size)
            padding += [total // 2, total - total // 2]
        x = F.pad(x, padding)
        return F.conv2d(x, self.weight, None, stride, groups=self.groups)


class _MobileNetwork(_Network):
    conv, epsilon = _SameConv, 1e-3  # TensorFlow's

    def put_blocks(self, inputs, stages, times=1.0):
        self.put_conv(("conv_stem", "bn1"), 3, inputs, 3, 2)
        self.plan = []
        for stage, (kernel, stride, outputs, *rest) in enumerate(stages):
            expansions, squeeze, activation = rest
            more = math.ceil(times * len(expansions)) - len(expansions)
            for index, expansion in enumerate(expansions + expansions[:more]):
                block = f"blocks.{stage}.{index}."
                middle = _multiple_of_8(inputs * expansion)
                step = stride if index == 0 else 1
                # bn1 and conv_pw are whatever comes first of their kind.
                expand, names = (), ("bn1", "conv_pw", "bn2")
                if expansion != 1:
                    expand = (block + "conv_pw", block + "bn1")
                    self.put_conv(expand, inputs, middle)
                    names = ("bn2", "conv_pwl", "bn3")
                depthwise = (block + "conv_dw", block + names[0])
                self.put_conv(depthwise, middle, middle, kernel, step, middle)
                se = ()
                if squeeze:
                    se = (block + "se.conv_reduce", block + "se.conv_expand")
                    squeezed = squeeze(inputs, middle)
                    self.put(se[0], nn.Conv2d(middle, squeezed, 1))
                    self.put(se[1], nn.Conv2d(squeezed, middle, 1))
                project = (block + names[1], block + names[2])
                self.put_conv(project, middle, outputs)
                residual = step == 1 and inputs == outputs
                paths = (expand, depthwise, se, project)
                self.plan.append((paths, activation, residual))
                inputs = outputs

    def run_blocks(self, images, activation, squeeze_activation, gate):
        x = self.run(images, ("conv_stem", "bn1"), activation)
        for (expand, depthwise, se, project), act, residual in self.plan:
            shortcut = x
            if expand:
                x = self.run(x, expand, act)
            x = self.run(x, depthwise, act)
            if se:
                scale = x.mean((2, 3), keepdim=True)
                scale = self.run(scale, se[:1], squeeze_activation)
                x = x * self.run(scale, se[1:], gate)
            x = self.run(x, project)
            x = x + shortcut if residual else x
        return x


class EfficientNet(_MobileNetwork):
    """timm's `tf_efficientnet_b0` and `tf_efficientnet_b1`."""

    def __init__(self, name="tf_efficientnet_b0", num_classes=1000):
        super().__init__()
        self.put_blocks(32, EFFICIENTNET_STAGES, EFFICIENTNETS[name])
        self.put_conv(("conv_head", "bn2"), 320, 1280)
        self.last = self.put_classifier("classifier", 1280, num_classes)

    def features(self, images):
        x = self.run_blocks(images, F.silu, F.silu, torch.sigmoid)
        return self.run(x, ("conv_head", "bn2"), F.silu).mean((2, 3))

    def forward(self, images):
        return self.run(self.features(images), self.last)


class MobileNetV3(_MobileNetwork):
    """timm's `tf_mobilenetv3_large_100`: features are the 960 before
    `conv_head`, which stays, unused, where there is no classifier.
    """

    def __init__(self, name="tf_mobilenetv3_large_100", num_classes=1000):
        super().__init__()
        self.put_blocks(16, MOBILENET_V3_STAGES)
        self.put_conv(("blocks.6.0.conv", "blocks.6.0.bn1"), 160, 960)
        self.conv_head = nn.Conv2d(960, 1280, 1)
        self.last = self.put_classifier("classifier", 1280, num_classes)

    def features(self, images):
        x = self.run_blocks(images, F.hardswish, F.relu, F.hardsigmoid)
        last = ("blocks.6.0.conv", "blocks.6.0.bn1")
        return self.run(x, last, F.hardswish).mean((2, 3))

    def forward(self, images):
        x = self.features(images)
        if not self.last:
            return x
        x = F.hardswish(self.conv_head(x[:, :, None, None])).flatten(1)
        return self.run(x, self.last)


NETWORKS = {
    **dict.fromkeys(RESNETS, ResNet),
    **dict.fromkeys(EFFICIENTNETS, EfficientNet),
    "tf_mobilenetv3_large_100": MobileNetV3,
}


def make(name, **options):
    """Any of the networks by its library's name, for tests over all."""
    return NETWORKS[name](name, **options)
