"""What to do: every option of quantisation in one record, and the recipes that have names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from secateur.ir.diagnostics import CompileError, nearest
from secateur.passes.quantize.observers import OBSERVERS, observer

WEIGHTS = ("int8", "int4")
ACTIVATIONS = ("int8", "none")
ROUNDINGS = ("auto", "nearest", "gptq")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one operation is quantised: its weights, and whether what flows into it is too.

    Attributes:
        weights: "int8", "int4", or "float" for an operation that stays as it is.
        group: weights of a linear layer share a scale by so many inputs; 0 for one scale an output channel.
        per_channel: one scale for each output channel; else one for the whole tensor.
        activations: False for weights only.
    """

    weights: str = "int8"
    activations: bool = True
    per_channel: bool = True
    group: int = 0


SCHEMES = {
    "float": Scheme("float"),
    "int8": Scheme(),
    "int8-per-tensor": Scheme(per_channel=False),
    "int4": Scheme("int4"),
    "weights-int8": Scheme(activations=False),
    "weights-int4": Scheme("int4", activations=False),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every option of post-training quantisation. The defaults suit a model whose 8-bit form shall be fast and close.

    Attributes:
        weights: "int8" or "int4" for products with constant weights.
        activations: "int8", or "none" to quantise only the weights of linear layers.
        per_channel: a scale for each output channel of weights; else one a tensor.
        symmetric: i8 activations around zero instead of u8 with a zero point.
        group: with activations "none", a scale for every so many inputs of an output channel; 0 for one a channel.
        observers: what proposes ranges of 8-bit tensors; the least error of the reading operation decides.
        equalize: even out channels between neighbouring layers by their weights (cross-layer equalisation).
        smooth: move outliers of activations into the weights behind (SmoothQuant), with the best of `alphas`.
        correct_bias: add what quantisation shifts an output channel by, on average over the batches, to its bias.
        round: "nearest", "gptq" (second order), or "auto": gptq for weights below 8 bits.
        damp, block, act_order: of gptq: share of the mean diagonal that is added to it, columns to a block, and
            whether columns go by importance.
        overrides: name pattern -> one of float, int8, int8-per-tensor, int4, weights-int8, weights-int4. Patterns are
            those of fnmatch and match the module path, the weights' name, the op's name or its label in the report,
            from the beginning or behind any dot; the last that matches counts.
        keep_float: patterns of operations that stay float.
        first, last: False keeps the first or the last product float.
        batches: at most so many are read; 0 for all.
        samples: so many of them serve where whole results are compared.
        delta: the accuracy that may be lost, for searches that mix precisions; not used by `quantize` itself.
        seed: of whatever is drawn.

    Raises:
        CompileError: an option has a value that means nothing.
    """

    weights: str = "int8"
    activations: str = "int8"
    per_channel: bool = True
    symmetric: bool = False
    group: int = 0
    observers: tuple[str, ...] = tuple(OBSERVERS)
    equalize: bool = True
    smooth: bool = True
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75)
    correct_bias: bool = True
    round: str = "auto"
    damp: float = 0.01
    block: int = 128
    act_order: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    keep_float: tuple[str, ...] = ()
    first: bool = True
    last: bool = True
    batches: int = 0
    samples: int = 16
    delta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("weights", self.weights, WEIGHTS)
        _one_of("activations", self.activations, ACTIVATIONS)
        _one_of("round", self.round, ROUNDINGS)
        for scheme in self.overrides.values():
            _one_of("overrides", scheme, tuple(SCHEMES))
        if not self.observers:
            raise CompileError("observers: at least one is needed", hint=f"there are {', '.join(OBSERVERS)}")
        for name in self.observers:
            observer(name)
        _require(self.group >= 0, f"group must be 0 or more, got {self.group}")
        if self.group and self.activations != "none":
            raise CompileError(
                f"group = {self.group} is for weights alone: 8-bit products add up whole channels",
                hint='activations="none"',
            )
        _require(all(0 <= alpha <= 1 for alpha in self.alphas), f"alphas must be in 0..1, got {self.alphas}")
        _require(self.damp > 0, f"damp must be above 0, got {self.damp}")
        _require(self.block > 0, f"block must be above 0, got {self.block}")
        _require(self.samples > 0, f"samples must be above 0, got {self.samples}")
        _require(self.batches >= 0, f"batches must be 0 or more, got {self.batches}")
        _require(self.delta is None or self.delta >= 0, f"delta must be 0 or more, got {self.delta}")

    @property
    def scheme(self) -> Scheme:
        """How an operation is quantised that no override names."""
        return Scheme(self.weights, self.activations == "int8", self.per_channel, self.group)

    def rounds_second_order(self, weights: str) -> bool:
        return self.round == "gptq" or (self.round == "auto" and weights == "int4")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CompileError(f"{option}: {value!r} is not one of {', '.join(known)}", hint=nearest(str(value), known))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CompileError(message)


RECIPES = {
    "int8": Recipe(),
    "int4": Recipe(weights="int4"),
    "weights-int8": Recipe(activations="none"),
    "weights-int4": Recipe(weights="int4", activations="none", group=32),
}


def recipe_of(given: str | Recipe, **changes: object) -> Recipe:
    """A recipe, or the one of that name, with some options changed; raises `CompileError` on an unknown name."""
    if isinstance(given, str):
        if given not in RECIPES:
            known = f"there are {', '.join(RECIPES)}"
            raise CompileError(f"no recipe is called {given!r}", hint=nearest(given, RECIPES) or known)
        given = RECIPES[given]
    return replace(given, **changes)  # type: ignore[arg-type]
