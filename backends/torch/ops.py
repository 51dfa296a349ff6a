"""Every operation as a function over torch tensors: the second oracle, independent of the NumPy references."""

from __future__ import annotations

# Importing a family fills the table.
from secateur.backends.torch import elementwise, movement, neural, quantized, reduction, resize
from secateur.backends.torch.table import TABLE

__all__ = ["TABLE", "elementwise", "movement", "neural", "quantized", "reduction", "resize"]
