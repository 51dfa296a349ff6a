"""ONNX models -> graphs."""

from secateur.frontends.onnx.importer import import_onnx

__all__ = ["import_onnx"]
