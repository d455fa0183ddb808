"""A JAX function as an ONNX graph, operation by operation of its jaxpr: those that inference of our models has.

jax2onnx does so for all of JAX, but cannot be installed beside `mixformer-jax[train]` (it wants orbax-checkpoint below
0.11.37) and draws in twenty packages; `torch.onnx` would want every model a second time in PyTorch.

What depends on weights alone is computed here, and does not reach the file. ONNX broadcasts as numpy does, so that
`broadcast_in_dim` only inserts axes, and a value may be smaller than its jaxpr says, until an operation needs it whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

from mixformer_jax.export.export import Function, Shapes
from mixformer_jax.tracking.tracker import Tracker

OPSET = 18
IR_VERSION = 9  # the first of onnx 1.14, which is old enough for every runtime that knows the opset
MOST_BYTES = 2**31 - 2**20  # of weights: a protobuf holds 2 GiB


class ExportError(ValueError):
    """A model or a type that cannot be exported so."""


class _Value(NamedTuple):
    """A value of the graph: by its name there, or, where it is known already, as an array."""

    shape: tuple[int, ...]  # as it is; broadcasting makes that of the jaxpr of it
    known: np.ndarray | None = None
    name: str = ""


def onnx_bytes(tracker: Tracker, function: Function) -> bytes:
    """A function of a tracker as an ONNX file, with the weights inside; ExportError for an operation that has no
    translation here, or more than a file can hold."""
    variables, inputs, shapes = tracker.variables, function.inputs, function.outputs
    with nn.intercept_methods(_name_layer_norms):
        # A function of its own: what JAX remembers of another trace has other names.
        traced = jax.make_jaxpr(lambda *args: function.call(*args))(variables, dict(inputs))
    given = [_Value(np.shape(x), np.asarray(x)) for x in jax.tree.leaves(variables)]
    given += [_Value(inputs[name].shape, name=name) for name in sorted(inputs)]  # as JAX flattens a dict
    graph, outputs = _Graph(), sorted(shapes)
    with jax.default_device(tracker.device):
        results = graph.inline(traced, given)
    for output, value in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.whole(value, shapes[output].shape)], [output]))
    nodes, constants = graph.needed_for(outputs)
    size = sum(array.nbytes for array in constants.values())
    if size > MOST_BYTES:
        raise ExportError(f"{size / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB: export it as stablehlo")
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, function.name, _infos(inputs), _infos(shapes), tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mixformer_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _infos(shapes: Shapes) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, _element(x.dtype), x.shape) for name, x in sorted(shapes.items())]


def _element(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@jax.jit
def _layer_norm(x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    """To be traced, for its name: ONNX has the operation, and runtimes a kernel for it."""
    spread = x - x.mean(axis=-1, keepdims=True)
    return spread / jnp.sqrt(jnp.square(spread).mean(axis=-1, keepdims=True) + epsilon) * scale + bias


def _name_layer_norms(call: Callable[..., Any], inputs: Any, fixed: Any, context: nn.module.InterceptorContext) -> Any:
    """Makes every layer norm of a model a call of `_layer_norm`."""
    module = context.module
    if not isinstance(module, nn.LayerNorm) or context.method_name != "__call__":
        return call(*inputs, **fixed)
    weights = module.variables["params"]
    return _layer_norm(inputs[0], weights["scale"], weights["bias"], module.epsilon)


# Operations that are one of ONNX, element by element.
_ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "gt": "Greater",
    "exp": "Exp",
    "log": "Log",
    "neg": "Neg",
    "erf": "Erf",
    "logistic": "Sigmoid",
    "and": "And",
}
# ... and those that take more than one, or go by another name.
_ALSO_ELEMENTWISE = ("select_n", "square", "rsqrt", "convert_element_type", "round")
# Operations that are a call of another jaxpr, and the parameter that holds it.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}


class _Graph:
    """A graph that grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # of small constants, which recur

    def inline(self, closed: ClosedJaxpr | Jaxpr, given: Sequence[_Value]) -> list[_Value]:
        """Adds the operations of a jaxpr; returns its results."""
        jaxpr, constants = (closed.jaxpr, closed.consts) if isinstance(closed, ClosedJaxpr) else (closed, [])
        values = {var: _Value(np.shape(x), np.asarray(x)) for var, x in zip(jaxpr.constvars, constants, strict=True)}
        values.update(zip(jaxpr.invars, given, strict=True))

        def read(var: Any) -> _Value:
            is_literal = isinstance(var, Literal)
            return _Value(np.shape(var.val), np.asarray(var.val, var.aval.dtype)) if is_literal else values[var]

        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self._add(eqn, [read(var) for var in eqn.invars]), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def whole(self, value: _Value, shape: tuple[int, ...]) -> str:
        """The name of a value in the shape that its jaxpr gives it."""
        if value.shape == tuple(shape):
            return self._name(value)
        return self._node("Expand", [self._name(value), self._integers(shape)])

    def needed_for(self, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        """The nodes and constants without which the outputs would not be."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        return kept[::-1], {name: array for name, array in self._constants.items() if name in wanted}

    def _add(self, eqn: Any, values: list[_Value]) -> Sequence[_Value]:
        """Adds one operation of a jaxpr; returns its results."""
        kind, params, result = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
        shapes = [var.aval.shape for var in eqn.invars]
        if params.get("name") == "_layer_norm" and values[0].known is None:
            return [self._layer_norm(values, shapes)]
        if kind in _CALLS:
            return self.inline(params[_CALLS[kind]], values)
        if kind == "platform_index":  # the variant for no platform in particular
            return [_Value((), np.asarray(params["platforms"].index(None), np.int32))]
        if kind == "cond" and values[0].known is not None:
            return self.inline(params["branches"][int(values[0].known)], values[1:])
        if kind == "stop_gradient":
            return values
        if kind in ("reshape", "squeeze", "broadcast_in_dim"):
            return [self._reshaped(kind, values[0], shapes[0], result.shape, params)]
        known = [np.broadcast_to(x.known, size) for x, size in zip(values, shapes, strict=True) if x.known is not None]
        if len(known) == len(values):
            found = eqn.primitive.bind(*known, **params)
            return [_Value(x.shape, np.asarray(x)) for x in (found if eqn.primitive.multiple_results else [found])]
        if kind in _ELEMENTWISE or kind in _ALSO_ELEMENTWISE:
            shape = np.broadcast_shapes(*(value.shape for value in values))
            return [_Value(shape, name=self._elementwise(kind, [self._name(value) for value in values], result.dtype))]
        names = [self.whole(value, shape) for value, shape in zip(values, shapes, strict=True)]
        translate = getattr(self, f"_{kind}", None)
        if translate is None:
            raise ExportError(f"the operation {kind} has no translation to ONNX here; export the model as stablehlo")
        outputs = translate(names, shapes, params)
        made = outputs if eqn.primitive.multiple_results else [outputs]
        return [_Value(var.aval.shape, name=name) for var, name in zip(eqn.outvars, made, strict=True)]

    # Names.

    def _node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self._nodes(kind, inputs, 1, **attributes)[0]

    def _nodes(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        outputs = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if count > 1 else "") for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}_{len(self.nodes)}", **attributes))
        return outputs

    def _name(self, value: _Value) -> str:
        return value.name if value.known is None else self._constant(value.known)

    def _constant(self, array: np.ndarray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= 1024 else None
        if key in self._names:
            return self._names[key]
        name = f"constant_{len(self._constants)}"
        self._constants[name] = array
        if key is not None:
            self._names[key] = name
        return name

    def _integers(self, numbers: Sequence[SupportsIndex]) -> str:
        return self._constant(np.asarray(numbers, np.int64))

    # Operations.

    def _elementwise(self, kind: str, names: list[str], dtype: np.dtype) -> str:
        match kind:
            case "select_n":
                predicate, if_false, if_true = names
                return self._node("Where", [predicate, if_true, if_false])
            case "square":
                return self._node("Mul", names * 2)
            case "round":  # half to even, as `rint`: the only rounding of our models
                return self._node("Round", names)
            case "rsqrt":
                return self._node("Reciprocal", [self._node("Sqrt", names)])
            case "convert_element_type":
                return self._node("Cast", names, to=_element(dtype))
        if kind == "max" and names[1] in self._constants and not self._constants[names[1]].any():
            return self._node("Relu", names[:1])
        if kind == "erf":  # of a quotient: so runtimes know a GELU
            made = next((node for node in self.nodes if names[0] in node.output and node.op_type == "Mul"), None)
            if made is not None and made.input[1] in self._constants:
                divisor = self._constant(np.asarray(1 / self._constants[made.input[1]]))
                names = [self._node("Div", [made.input[0], divisor])]
        return self._node(_ELEMENTWISE[kind], names)

    def _reshaped(
        self, kind: str, value: _Value, before: tuple[int, ...], after: tuple[int, ...], params: Mapping[str, Any]
    ) -> _Value:
        shape = after
        if kind == "broadcast_in_dim":
            lengths = dict(zip(params["broadcast_dimensions"], value.shape, strict=True))
            before, shape = value.shape, tuple(lengths.get(axis, 1) for axis in range(len(after)))
        if value.known is not None:
            return _Value(shape, np.broadcast_to(value.known, before).reshape(shape))
        return _Value(shape, name=self._in_shape(self.whole(value, before), before, shape))

    def _in_shape(self, name: str, shape: Sequence[int], wanted: Sequence[int]) -> str:
        return name if list(shape) == list(wanted) else self._node("Reshape", [name, self._integers(wanted)])

    def _layer_norm(self, values: list[_Value], shapes: Any) -> _Value:
        *operands, epsilon = values
        assert epsilon.known is not None
        names = [self.whole(value, shape) for value, shape in zip(operands, shapes, strict=False)]
        return _Value(shapes[0], name=self._node("LayerNormalization", names, axis=-1, epsilon=float(epsilon.known)))

    def _transpose(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        return self._transposed(names[0], params["permutation"])

    def _transposed(self, name: str, order: Sequence[SupportsIndex]) -> str:
        if list(order) == list(range(len(order))):
            return name
        if name in self._constants:
            return self._constant(np.ascontiguousarray(self._constants[name].transpose(order)))
        return self._node("Transpose", [name], perm=list(order))

    def _concatenate(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        return self._node("Concat", names, axis=params["dimension"])

    def _stack(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        axis = params["axis"]
        return self._node("Concat", [self._node("Unsqueeze", [x, self._integers([axis])]) for x in names], axis=axis)

    def _unstack(self, names: list[str], shapes: Any, params: Mapping[str, Any]) -> list[str]:
        axis, count = params["axis"], shapes[0][params["axis"]]
        parts = self._nodes("Split", [names[0], self._integers([1] * count)], count, axis=axis)
        return [self._node("Squeeze", [part, self._integers([axis])]) for part in parts]

    def _tile(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        return self._node("Tile", [names[0], self._integers(params["reps"])])

    def _slice(self, names: list[str], shapes: Any, params: Mapping[str, Any]) -> str:
        axes = range(len(shapes[0]))
        numbers = (params["start_indices"], params["limit_indices"], axes, params["strides"] or [1 for _ in axes])
        return self._node("Slice", [names[0], *map(self._integers, numbers)])

    def _split(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> list[str]:
        sizes = params["sizes"]
        return self._nodes("Split", [names[0], self._integers(sizes)], len(sizes), axis=params["axis"])

    def _pad(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        before, after, inside = zip(*params["padding_config"], strict=True)
        if any(inside):
            raise ExportError("padding between elements has no translation to ONNX here")
        return self._node("Pad", [names[0], self._integers([*before, *after]), names[1]])

    def _reduce_sum(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        return self._node("ReduceSum", [names[0], self._integers(params["axes"])], keepdims=0)

    def _reduce_max(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        return self._node("ReduceMax", [names[0], self._integers(params["axes"])], keepdims=0)

    def _reduce_or(self, names: list[str], shapes: Any, params: Mapping[str, Any]) -> str:
        numbers = self._node("Cast", names, to=_element(np.int32))
        return self._node("Cast", [self._reduce_max([numbers], shapes, params)], to=_element(np.bool_))

    def _gather(self, names: list[str], shapes: Any, params: Mapping[str, Any]) -> str:
        """Rows of a table, by an index each."""
        numbers, rank = params["dimension_numbers"], len(shapes[1])
        rows = (numbers.start_index_map, numbers.collapsed_slice_dims, numbers.offset_dims) == ((0,), (0,), (rank - 1,))
        if len(shapes[0]) != 2 or not rows or params["slice_sizes"] != (1, shapes[0][1]):
            raise ExportError("gathering anything but whole rows of a table has no translation to ONNX here")
        index = self._node("Squeeze", [names[1], self._integers([rank - 1])])
        return self._node("Gather", [names[0], index], axis=0)

    def _dot_general(self, names: list[str], shapes: Any, params: Mapping[str, Any]) -> str:
        """A product of matrices over batch axes: axes are brought into order, and joined where there are several."""
        summed, batch = params["dimension_numbers"]
        kept = [
            [axis for axis in range(len(shape)) if axis not in (*summed[side], *batch[side])]
            for side, shape in enumerate(shapes)
        ]
        operands = []
        for side, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            groups = [[axis] for axis in batch[side]] + ([kept[0], summed[0]] if side == 0 else [summed[1], kept[1]])
            order = [axis for group in groups for axis in group]
            joined = [math.prod(shape[axis] for axis in group) for group in groups]
            if side == 0 and not batch[0]:  # a plain matrix on the right takes any number of rows' axes on the left
                joined[:1] = [shape[axis] for axis in kept[0]]
            operands.append(self._in_shape(self._transposed(name, order), [shape[axis] for axis in order], joined))
        product = self._node("MatMul", operands)
        rows, columns = ([shapes[side][axis] for axis in kept[side]] for side in (0, 1))
        batches = [shapes[0][axis] for axis in batch[0]]
        made = [*batches, *([math.prod(rows)] if batches else rows), math.prod(columns)]
        return self._in_shape(product, made, [*batches, *rows, *columns])

    def _conv_general_dilated(self, names: list[str], _shapes: Any, params: Mapping[str, Any]) -> str:
        numbers = params["dimension_numbers"]
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise ExportError("transposed convolutions have no translation to ONNX here")
        image, kernel = (
            self._transposed(name, spec) for name, spec in zip(names, (numbers.lhs_spec, numbers.rhs_spec), strict=True)
        )
        before, after = zip(*params["padding"], strict=True)
        mixed = self._node(
            "Conv",
            [image, kernel],
            strides=list(params["window_strides"]),
            pads=[*before, *after],
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )
        return self._transposed(mixed, np.argsort(numbers.out_spec).tolist())
