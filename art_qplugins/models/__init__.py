"""Networks by name. Pixels in [0, 1] go in, logits come out; nothing normalises outside the model."""

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
    ],
)
