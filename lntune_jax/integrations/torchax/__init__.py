"""Any PyTorch module, any model of transformers 5, as `(params, apply)`, by torchax."""

from .model import TorchModel, from_pretrained, from_torch
from .module import TorchOutput

__all__ = ["TorchModel", "TorchOutput", "from_pretrained", "from_torch"]
