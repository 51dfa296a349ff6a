"""RNN, GRU and LSTM, unrolled over time."""

from __future__ import annotations

from collections.abc import Callable

from secateur.frontends.onnx.control import stack
from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value

ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu"}
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Cell:
    """The weights of one direction: w [gates*H, I], r [gates*H, H], biases [gates*H] or None."""

    def __init__(self, n: Node, direction: int, directions: int) -> None:
        self.n = n
        self.hidden = n.x(2).shape[2]
        self.gates = GATES[n.name]
        self.w, self.r = (self._of(n.x(index), direction) for index in (1, 2))
        bias = self._of(n.x(3), direction) if n.has(3) else None
        width = self.gates * self.hidden
        self.wb = n.cut(bias, 0, 0, width) if bias is not None else None
        self.rb = n.cut(bias, 0, width, 2 * width) if bias is not None else None
        names = n.attr("activations", DEFAULTS[n.name] * directions)
        each = len(DEFAULTS[n.name])
        self.f = [self._activation(name) for name in names[direction * each : (direction + 1) * each]]

    def _of(self, x: Value, direction: int) -> Value:
        return self.n.reshape(self.n.cut(x, 0, direction, direction + 1), x.shape[1:])

    def _activation(self, name: str) -> Callable[[Value], Value]:
        if name.lower() not in ACTIVATIONS:
            raise self.n.fail(f"activation {name!r} is not supported")
        return getattr(self.n.b, ACTIVATIONS[name.lower()])

    def linear(self, x: Value, w: Value, bias: Value | None) -> Value:
        return self.n.b.linear(x, w) if bias is None else self.n.b.linear(x, w, bias)

    def gate(self, x: Value, index: int) -> Value:
        return self.n.cut(x, 1, index * self.hidden, (index + 1) * self.hidden)

    def rnn(self, x: Value, h: Value) -> Value:
        return self.f[0](self.n.b.add(x, self.linear(h, self.r, self.rb)))

    def gru(self, x: Value, h: Value) -> Value:
        """Gates z, r, h; with `linear_before_reset` the reset gate acts on the product, else on the state."""
        n, b = self.n, self.n.b
        split = 2 * self.hidden
        r_zr, r_h = n.cut(self.r, 0, 0, split), n.cut(self.r, 0, split, 3 * self.hidden)
        bias_zr = None if self.rb is None else n.cut(self.rb, 0, 0, split)
        bias_h = None if self.rb is None else n.cut(self.rb, 0, split, 3 * self.hidden)
        zr = self.f[0](b.add(n.cut(x, 1, 0, split), self.linear(h, r_zr, bias_zr)))
        z, r = self.gate(zr, 0), self.gate(zr, 1)
        if n.attr("linear_before_reset", 0):
            recurrent = b.mul(r, self.linear(h, r_h, bias_h))
        else:
            recurrent = self.linear(b.mul(r, h), r_h, bias_h)
        fresh = self.f[1](b.add(self.gate(x, 2), recurrent))
        return b.add(b.mul(b.sub(n.scalar_like(1, z), z), fresh), b.mul(z, h))

    def lstm(self, x: Value, h: Value, c: Value, peephole: list[Value]) -> tuple[Value, Value]:
        """Gates i, o, f, c; peepholes let i and f see the old cell state and o the new one."""
        b = self.n.b
        total = b.add(x, self.linear(h, self.r, self.rb))
        i, o, f, fresh = (self.gate(total, index) for index in range(4))
        if peephole:
            i, f = b.add(i, b.mul(peephole[0], c)), b.add(f, b.mul(peephole[2], c))
        c = b.add(b.mul(self.f[0](f), c), b.mul(self.f[0](i), self.f[1](fresh)))
        if peephole:
            o = b.add(o, b.mul(peephole[1], c))
        return b.mul(self.f[0](o), self.f[2](c)), c


def _run(n: Node, x: Value, direction: int, directions: int, backwards: bool) -> tuple[list[Value], Value, Value]:
    """(h of every step in the order of time, last h, last c) of one direction; x is [time, batch, I]."""
    cell = Cell(n, direction, directions)
    time, batch, width = x.shape
    h = _initial(n, 5, direction, batch, cell.hidden, x)
    c = _initial(n, 6, direction, batch, cell.hidden, x) if n.name == "LSTM" else h
    peephole: list[Value] = []
    if n.name == "LSTM" and n.has(7):
        row_of = n.reshape(n.cut(n.x(7), 0, direction, direction + 1), (3 * cell.hidden,))
        peephole = [n.cut(row_of, 0, index * cell.hidden, (index + 1) * cell.hidden) for index in range(3)]
    # The input's share of every step is one product.
    inputs = cell.linear(n.reshape(x, (time * batch, width)), cell.w, cell.wb)
    steps: list[Value] = []
    for step in reversed(range(time)) if backwards else range(time):
        now = n.cut(inputs, 0, step * batch, (step + 1) * batch)
        if n.name == "LSTM":
            h, c = cell.lstm(now, h, c, peephole)
        else:
            h = cell.gru(now, h) if n.name == "GRU" else cell.rnn(now, h)
        steps.append(h)
    return steps[::-1] if backwards else steps, h, c


def _initial(n: Node, index: int, direction: int, batch: int, hidden: int, x: Value) -> Value:
    if not n.has(index):
        return n.expand(n.scalar_like(0, x), (batch, hidden))
    state = n.transpose(n.x(index), (1, 0, 2)) if n.attr("layout", 0) else n.x(index)
    return n.reshape(n.cut(state, 0, direction, direction + 1), (batch, hidden))


@row("RNN", "GRU", "LSTM")
def recurrent(n: Node) -> list[Value]:
    x = n.x(0)
    for name in ("clip", "input_forget", "activation_alpha", "activation_beta"):
        if n.attrs.get(name):
            raise n.fail(f"{name} is not supported")
    batch_first = bool(n.attr("layout", 0))
    x = n.transpose(x, (1, 0, 2)) if batch_first else x
    if n.has(4):
        lengths = constant_value(n.x(4))
        if lengths is None or (lengths != x.shape[0]).any():
            raise n.fail("sequence_lens other than the full length are not supported")
    n.refuse("direction", "forward", "reverse", "bidirectional")
    direction = n.attr("direction", "forward")
    both = direction == "bidirectional"
    runs = [_run(n, x, d, 1 + both, d == 1 or direction == "reverse") for d in range(1 + both)]
    per_step = [stack(n, [steps[t] for steps, _, _ in runs], 0) for t in range(x.shape[0])]
    made = [stack(n, per_step, 0), stack(n, [h for _, h, _ in runs], 0), stack(n, [c for _, _, c in runs], 0)]
    if batch_first:
        made = [n.transpose(made[0], (2, 0, 1, 3)), *(n.transpose(state, (1, 0, 2)) for state in made[1:])]
    return made if n.name == "LSTM" else made[:2]
