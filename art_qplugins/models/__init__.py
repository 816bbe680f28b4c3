"""Networks by name. Each takes pixels in [0, 1] and gives logits. Normalisation, if any, is inside the network."""

from art_qplugins.domains import Number, Option, Rule
from art_qplugins.registry import Entry, Registry

__all__ = ["MODELS"]

#: The largest networks here have about a billion weights on 32x32 images.
_WIDTH = Number(1, 512, whole=True)

MODELS: Registry[Entry] = Registry(
    "architecture",
    [
        Entry(
            name="convnet",
            target="art_qplugins.models.convnet:ConvNet",
            help="two convolutions and two linear layers, for 8x8 to 32x32 images",
            options={"width": Option(16, _WIDTH)},
        ),
        Entry(
            name="wrn",
            target="art_qplugins.models.wide_resnet:WideResNet",
            help="wide residual network WRN-depth-widen_factor (Zagoruyko & Komodakis 2016), from 4x4 on",
            options={
                "depth": Option(28, Number(10, 1000, whole=True)),
                "widen_factor": Option(10, Number(1, 32, whole=True)),
                "aggregation": False,
            },
            rules=(
                Rule(("depth",), lambda depth: depth % 6 == 4, "a depth of 6n + 4: 10, 16, 22, 28, ..."),
                Rule(
                    ("depth", "widen_factor"),
                    lambda depth, factor: depth * factor**2 <= 75_000,
                    "less of one: the network would have more than a billion weights",
                ),
            ),
        ),
        Entry(
            name="vgg16",
            target="art_qplugins.models.vgg:VGG16",
            help="VGG-16 with batch norm and one linear layer, from 32x32 on",
            options={"width": Option(64, _WIDTH)},
        ),
        Entry(
            name="resnet8",
            target="art_qplugins.models.resnet:ResNet8",
            help="ResNet-8 for CIFAR-10, with 78,000 weights, from 4x4 on",
            options={"width": Option(16, _WIDTH), "aggregation": False},
        ),
        Entry(
            name="resnet18",
            target="art_qplugins.models.resnet:ResNet18",
            help="ResNet-18 with a 3x3 stem, from 8x8 on",
            options={"width": Option(64, _WIDTH), "aggregation": False},
        ),
        Entry(
            name="mnist-cnn",
            target="art_qplugins.models.mnist_cnn:MnistCNN",
            help="two convolutions and two linear layers without batch norm (Madry et al. 2018), from 4x4 on",
            options={"width": Option(32, _WIDTH)},
        ),
        Entry(
            name="madry-wrn",
            target="art_qplugins.models.madry:MadryWideResNet",
            help="wide residual network w32-10 (Madry et al. 2018), which standardizes each image, from 4x4 on",
            options={
                "units": Option(5, Number(1, 20, whole=True)),
                "widen_factor": Option(10, Number(1, 32, whole=True)),
            },
        ),
    ],
    group="art_qplugins.models",
)
