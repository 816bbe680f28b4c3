"""Networks by name. Each takes pixels in [0, 1] and gives logits. Normalisation, if any, is inside the network."""

from art_qplugins.registry import Entry, Registry

__all__ = ["MODELS"]

MODELS: Registry[Entry] = Registry(
    "architecture",
    [
        Entry(
            name="convnet",
            target="art_qplugins.models.convnet:ConvNet",
            help="two convolutions and two linear layers, for 8x8 to 32x32 images",
            options={"width": 16},
        ),
        Entry(
            name="wrn",
            target="art_qplugins.models.wide_resnet:WideResNet",
            help="wide residual network WRN-depth-widen_factor (Zagoruyko & Komodakis 2016), from 4x4 on",
            options={"depth": 28, "widen_factor": 10, "aggregation": False},
        ),
        Entry(
            name="vgg16",
            target="art_qplugins.models.vgg:VGG16",
            help="VGG-16 with batch norm and one linear layer, from 32x32 on",
            options={"width": 64},
        ),
        Entry(
            name="resnet18",
            target="art_qplugins.models.resnet:ResNet18",
            help="ResNet-18 with a 3x3 stem, from 8x8 on",
            options={"width": 64},
        ),
        Entry(
            name="mnist-cnn",
            target="art_qplugins.models.mnist_cnn:MnistCNN",
            help="two convolutions and two linear layers without batch norm (Madry et al. 2018), from 4x4 on",
            options={"width": 32},
        ),
    ],
    group="art_qplugins.models",
)
