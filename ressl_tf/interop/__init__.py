"""Out of TensorFlow and back: torch state dicts, ONNX and LiteRT files.

    state_dict = interop.to_state_dict(backbone)
    interop.write_state_dict("resnet50.safetensors", state_dict)

    backbone = ressl_tf.make_backbone("resnet50", (224, 224, 3), "imagenet")
    interop.load_state_dict(backbone, interop.read_state_dict("resnet50.pth"))

Names are torchvision's or detectron2's for ResNets, timm's for the light
networks (`tf_efficientnet_b0`, `tf_efficientnet_b1`,
`tf_mobilenetv3_large_100`, whose padding is TensorFlow's). A state dict is
{name: float32 array} of the backbone alone, without a classifier.

    interop.to_onnx("runs/cifar10/export/encoder", "encoder.onnx")
    interop.to_litert("runs/cifar10/export/encoder", "encoder.tflite")

These write an export, with its preprocessing, for other runtimes.
"""

from ressl_tf.interop.files import read_state_dict
from ressl_tf.interop.files import write_state_dict
from ressl_tf.interop.formats import to_litert
from ressl_tf.interop.formats import to_onnx
from ressl_tf.interop.names import LAYOUTS
from ressl_tf.interop.state_dicts import find_backbone
from ressl_tf.interop.state_dicts import load_state_dict
from ressl_tf.interop.state_dicts import to_state_dict

__all__ = [
    "LAYOUTS",
    "find_backbone",
    "load_state_dict",
    "read_state_dict",
    "to_litert",
    "to_onnx",
    "to_state_dict",
    "write_state_dict",
]
