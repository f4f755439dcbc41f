"""Which linear layer plays which role, found by following one forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone

ROLES = ("query", "key", "value", "output", "qkv", "fc1", "fc2")

# Leaf names, for models in which no attention is seen (fused C++ kernels, custom functions).
HINTS = {
    "query": {"query", "q_proj", "q_lin", "wq", "q", "to_q"},
    "key": {"key", "k_proj", "k_lin", "wk", "k", "to_k"},
    "value": {"value", "v_proj", "v_lin", "wv", "v", "to_v"},
    "output": {"o_proj", "out_proj", "out_lin", "wo", "o", "to_out", "proj"},
    "qkv": {"qkv", "Wqkv", "qkv_proj", "query_key_value", "in_proj"},
    "fc1": {"fc1", "lin1", "linear1", "up_proj", "intermediate", "wi"},
    "fc2": {"fc2", "lin2", "linear2", "down_proj"},
}

_MATMULS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_SOFTMAXES = {torch.softmax, Tensor.softmax, F.softmax}
Tag = tuple[str, Any]  # ("linear", name) | ("scores", i) | ("weights", i) | ("mixed", i)


class _Trace(TorchFunctionMode):
    """Carries to every tensor the set of what it was made from, back to the last linear layer or attention.

    A product of two activations is a table of scores; after a softmax it is attention weights; weights times an
    activation is attention. ``scaled_dot_product_attention`` is the same in one call. Everything else (reshapes,
    rotary embeddings, norms, activations, sums) hands the union of its inputs on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[int, frozenset[Tag]] = {}
        self.alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self.factors: list[tuple[frozenset[Tag], frozenset[Tag]]] = []
        self.attentions: list[tuple[frozenset[Tag], frozenset[Tag], frozenset[Tag]]] = []
        self.linears: dict[str, frozenset[Tag]] = {}  # name -> what its input was made from, in order of call

    def of(self, values: Any) -> frozenset[Tag]:
        if isinstance(values, Tensor):
            return self.tags.get(id(values), frozenset())
        if isinstance(values, dict):
            values = values.values()
        if isinstance(values, (tuple, list)) or type(values).__name__ == "dict_values":
            return frozenset().union(*(self.of(value) for value in values))
        return frozenset()

    def mark(self, values: Any, tags: frozenset[Tag]) -> None:
        if isinstance(values, Tensor):
            self.tags[id(values)] = tags
            self.alive.append(values)
        elif isinstance(values, (tuple, list)):
            for value in values:
                self.mark(value, tags)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args), **kwargs)
            tags = self.attention(self.of(given["query"]), self.of(given["key"]), self.of(given["value"]))
        elif func in _MATMULS or func is torch.einsum:
            operands = [a for a in _flat(args) if isinstance(a, Tensor)] + list(kwargs.values())
            tags = self.product(*map(self.of, operands[:2])) if len(operands) >= 2 else self.of(args)
        elif func in _SOFTMAXES:
            tags = frozenset(("weights", tag[1]) if tag[0] == "scores" else tag for tag in self.of(args))
        else:
            tags = self.of(args) | self.of(kwargs)
        self.mark(result, tags)
        return result

    def product(self, left: frozenset[Tag], right: frozenset[Tag]) -> frozenset[Tag]:
        scores = [tag[1] for tag in left if tag[0] == "weights"]
        if scores:
            query, key = self.factors[min(scores)]  # relative-position scores are added to the scores by content
            return self.attention(query, key, right)
        if left and right:
            self.factors.append((left, right))
            return frozenset({("scores", len(self.factors) - 1)})
        return left | right

    def attention(self, query: frozenset[Tag], key: frozenset[Tag], value: frozenset[Tag]) -> frozenset[Tag]:
        self.attentions.append((query, key, value))
        return frozenset({("mixed", len(self.attentions) - 1)})

    def linear_called(self, name: str, inputs: Any, output: Any) -> None:
        self.linears.setdefault(name, self.of(inputs))
        self.mark(output, frozenset({("linear", name)}))


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer; a layer that peft has wrapped counts once, under the name of its wrapper.

    >>> list(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    ['0']
    """
    found: dict[str, nn.Linear] = {}
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(outer + ".") for outer in wrapped):
            continue
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Linear):
            wrapped.append(name)
            found[name] = base
        elif isinstance(module, nn.Linear):
            found[name] = module
    return found


def linear_roles(backbone: Backbone) -> dict[str, list[str]]:
    """Roles of the linear layers of a Transformer, by what they do and not by what they are called.

    One forward pass on ``backbone.sample_input()`` is followed: the layers whose outputs become the queries, keys and
    values of an attention; the layer that takes its result ("output"); pairs d -> h, h -> d with nothing but an
    activation, a gate or a norm between ("fc1", "fc2"). One layer that makes all three is "qkv". Only where no
    attention is seen, for instance in a fused kernel, are common layer names tried.

    Returns:
        role -> names of modules inside ``backbone.model``, in the order of their use; roles without a layer are absent.

    Raises:
        ModelError: no role at all; the linear layers are listed.

    >>> import torch
    >>> from tangentcl.nn.backbone import from_module
    >>> from tangentcl.nn.vit import SmallViT
    >>> vit = SmallViT(width=24, depth=1, heads=3)
    >>> toy = from_module(vit, lambda m, x: m(x)[:, 0], 24, name="v", modality="image", sample=torch.ones(1, 3, 32, 32))
    >>> linear_roles(toy)["query"]
    ['blocks.0.attention.q']
    """
    trace, layers = _traced(backbone), linear_layers(backbone.model)
    roles: dict[str, list[str]] = defaultdict(list)

    def assign(role: str, names: Iterable[str]) -> None:
        taken = {name for known in roles.values() for name in known}
        roles[role].extend(name for name in trace.linears if name in names and name not in taken)

    for i, made_from in enumerate(trace.attentions):
        query, key, value = ({tag[1] for tag in tags if tag[0] == "linear"} for tags in made_from)
        shared = query & key & value
        assign("qkv", shared)
        assign("query", query - shared)
        assign("key", key - shared)
        assign("value", value - shared)
        consumers = [name for name, tags in trace.linears.items() if tags == {("mixed", i)}]
        assign("output", consumers[:1])
    attention = {name for known in roles.values() for name in known}
    for name, tags in trace.linears.items():
        before = [tag[1] for tag in tags]
        pair = before and all(kind == "linear" and one not in attention for kind, one in tags)
        if pair and name not in attention and all(_returns(layers[one], layers[name]) for one in before):
            assign("fc1", before)
            assign("fc2", [name])
    if not trace.attentions:
        for role, hints in HINTS.items():
            assign(role, [name for name in trace.linears if name.rsplit(".", 1)[-1] in hints])
    found = {role: roles[role] for role in ROLES if roles[role]}
    if not found:
        raise ModelError(
            f"no attention or MLP was recognised in {backbone.card.name}. Its linear layers: "
            f"{', '.join(layers) or 'none'}. Name the ones to adapt: targets=[...]."
        )
    return found


def _returns(first: nn.Linear, second: nn.Linear) -> bool:
    return first.in_features == second.out_features


def _traced(backbone: Backbone) -> _Trace:
    sample, trace = backbone.sample_input(), _Trace()
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for name in linear_layers(backbone.model):
                owner = backbone.model.get_submodule(name)

                def record(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                    trace.linear_called(name, inputs, output)

                handle = owner.register_forward_hook(record)
                stack.callback(handle.remove)
            stack.enter_context(trace)
            backbone(sample)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return trace
