"""What a model costs: parameters and FLOPs by part, beside the figures of the paper's Tables 1-3.

One FLOP is one multiply-accumulate of a matrix product or a convolution, as the paper counts, exactly, from the shapes
in the traced program. Norms, activations, softmax, biases and residual sums are left out: one to two operations a
hundred FLOPs. Nothing is computed and no weight is allocated.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.extend.core import ClosedJaxpr, Jaxpr
from tqdm import tqdm

from mixformer_jax.convert.names import count_parameters
from mixformer_jax.convert.weights import WeightsError, expected_shapes
from mixformer_jax.models.config import STUDIES, MixFormerConfig, size_config
from mixformer_jax.models.mixformer import build_model
from mixformer_jax.text_tables import aligned


def scope_modules(scope: str) -> list[str]:
    """`MixFormer.locate/blocks_3.project/mlp` -> `MixFormer`, `blocks_3`, `mlp`."""
    return [module.partition(".")[0] for module in scope.split("/")]


def module_of(op_name: str) -> str:
    """Direction and module of a compiled operation, by XLA's name for it, whatever the block.

    `.../transpose(jvp(MixFormer))/.../blocks_3/mlp/fc1/dot_general` is `backward mlp`.
    """
    direction = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else "update"
    modules = scope_modules(re.sub(r"\w+\(([^()]*)\)", r"\1", op_name))
    parts = ("patch_embed", "attention", "mlp", "norm1", "norm2", "qkv", "proj", "head", "decoder", "score")
    found = [part for part in parts if part in modules]
    return " ".join([direction, *found[:2]]) if op_name else "not named"


def count_macs(program: ClosedJaxpr) -> Counter[str]:
    """Multiply-accumulates of a traced program, by the scope of the module that asks for them.

    Counted are matrix products, convolutions (every position of the window, padding included), and the
    multiplications of depth-wise convolutions, which are written as sums of shifted images. A scan counts as often as
    it is long, a kernel as often as its grid has places, and of alternatives (one a platform) the last one counts.

    Raises NotImplementedError: for a loop whose length is not known.
    """
    counts = Counter[str]()
    for scope, equation, times in _equations(program.jaxpr, "", 1):
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _batch = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                counts[scope] += times * size * math.prod(left[axis] for axis in contracted)
            case "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                # The gradient of a strided convolution has zeros between its inputs: nobody multiplies them.
                stride = math.prod(equation.params["lhs_dilation"])
                counts[scope] += times * size * math.prod(kernel) // features // stride
            case "mul" if scope_modules(scope)[-1].startswith("depthwise"):
                counts[scope] += times * size
    return counts


def count_product_bytes(program: ClosedJaxpr) -> int:
    """Bytes of the operands and results of a program's matrix products and convolutions: the least traffic with memory
    of a program whose other operations are all fused into these. NotImplementedError for a loop of unknown length."""
    total = 0
    for _scope, equation, times in _equations(program.jaxpr, "", 1):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = (value.aval for value in (*equation.invars, *equation.outvars))
            total += times * sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    return total


def count_kernel_macs(program: ClosedJaxpr) -> int:
    """Multiply-accumulates inside of kernels, of which XLA's own counts know nothing."""
    return sum(
        times * _repetitions(equation) * count_macs(ClosedJaxpr(inner, ())).total()
        for _scope, equation, times in _equations(program.jaxpr, "", 1)
        if equation.primitive.name == "pallas_call"
        for inner in _programs_inside(equation.params)
    )


def _equations(jaxpr: Jaxpr, outer: str, times: int) -> Iterator[tuple[str, Any, int]]:
    """Every equation with its scope and how often it is computed."""
    for equation in jaxpr.eqns:
        scope = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        if equation.primitive.name == "while":
            raise NotImplementedError(f"a loop of unknown length in {scope or 'the program'}")
        yield scope, equation, times
        for inner in _programs_inside(equation.params):
            yield from _equations(inner, scope, times * _repetitions(equation))


def _repetitions(equation: Any) -> int:
    """How often an equation runs the programs inside of it."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "pallas_call":
            return math.prod(equation.params["grid_mapping"].grid)
    return 1


def _programs_inside(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for key, value in params.items():
        programs = value if isinstance(value, tuple | list) else (value,)
        for program in programs[-1:] if key == "branches" else programs:
            if isinstance(program, ClosedJaxpr):
                yield program.jaxpr
            elif isinstance(program, Jaxpr):
                yield program


DIFFERENCE_TO_EXPLAIN = 0.03
PARAMETER_COLUMNS = ("backbone", "head", "score", "whole", "official", "paper", "difference")
FLOP_COLUMNS = (
    *("templates", "encoding", "search", "backbone", "head"),
    *("score", "frame", "whole", "paper", "difference"),
)


class Published(NamedTuple):
    """A row of the paper: parameters in millions and FLOPs in 10^9, None where the paper has no number."""

    row: str = ""
    parameters: float | None = None
    flops: float | None = None


PAPER: Mapping[str, Published] = MappingProxyType(
    {
        # Table 1 heads its parameters "MACs".
        "mixcvt": Published("Table 1", 35.61, 23.04),
        "mixcvt_l": Published("Table 1", 183.89, 127.81),
        "mixvit_b": Published("Table 2", 97.0),
        "mixvit_l": Published("Table 2", 318.0),
        "mixvit_b_convmae": Published("Table 2", 96.0),
        "mixvit_l_convmae": Published("Table 2", 286.0),
        "sam21_cam1": Published("Table 3 #1", 37.35, 20.69),
        "sam21_cam3": Published("Table 3 #2", 40.92, 22.20),
        "sam21_transt4": Published("Table 3 #3", 49.75, 27.81),
        "sam20_mam1": Published("Table 3 #4", 35.57, 19.97),
        "sam15_mam6": Published("Table 3 #5", 35.67, 20.02),
        "sam10_mam11": Published("Table 3 #6", 35.77, 20.07),
        "sam5_mam16": Published("Table 3 #7", 35.87, 20.12),
        "mixcvt_symmetric": Published("Table 3 #8", 35.97, 20.85),
        "mixcvt_symmetric_query": Published("Table 3 #9", 31.46, 19.13),
    }
)


class Cost(NamedTuple):
    """What one part of a model costs."""

    parameters: int  # numbers in it; constants (frozen norms, sin-cos tables) are none
    encoding: int  # multiply-accumulates of `encode_templates`, once a template change; 0 where nothing can be cached
    frame: int  # those of every frame

    @property
    def flops(self) -> int:
        """Of templates and one search region together."""
        return self.encoding + self.frame


class Profile(NamedTuple):
    """The cost of a model, for a batch of one."""

    config: MixFormerConfig  # the model
    # The initial template and online templates that were counted. An empty slot costs what a filled one does.
    templates: int
    backbone: Cost  # all but head and score module
    head: Cost  # the box head
    score: Cost  # the score module; zeros for a model without one
    # Of the official module, which also holds tensors that no forward pass reads; None where the official code has no
    # such model
    official_parameters: int | None

    @property
    def whole(self) -> Cost:
        return Cost(*map(sum, zip(self.backbone, self.head, self.score, strict=True)))


def profile_models(names: Iterable[str], templates: int | None = None, progress: bool = False) -> list[Profile]:
    """Profiles sizes and study models by name; ConfigError for an unknown one, before anything is counted."""
    configs = [size_config(name) for name in names]
    bar = tqdm(configs, desc="profile", unit="model", disable=not progress or None, leave=False)
    return [profile_model(config, templates) for config in bar]


def profile_model(config: MixFormerConfig, templates: int | None = None) -> Profile:
    """Counts parameters and multiply-accumulates with so many templates, the initial one included; None: as many as the
    paper's FLOPs are for. ValueError for fewer than one."""
    if templates is None:
        templates = published_templates(config.name)
    if templates < 1:
        raise ValueError(f"templates is {templates}; expected at least 1")
    model, shapes = build_model(config), expected_shapes(config)
    variables = unflatten_dict({tuple(name.split("/")): _abstract(*shape) for name, shape in shapes.items()})
    crops = _abstract(1, templates, config.template_size, config.template_size, config.channels)
    region = _abstract(1, config.search_size, config.search_size, config.channels)
    encoding = Counter[str]()
    if config.is_cacheable:
        encode = functools.partial(model.apply, method="encode_templates")
        locate = functools.partial(model.apply, method="locate")
        program, cache = jax.make_jaxpr(encode, return_shape=True)(variables, crops)
        encoding = _by_part(count_macs(program))
        frame = _by_part(count_macs(jax.make_jaxpr(locate)(variables, cache, region)))
    else:
        frame = _by_part(count_macs(jax.make_jaxpr(model.apply)(variables, crops, region)))
    parameters = _by_part({name: math.prod(shape) for name, shape in shapes.items() if name.startswith("params/")})
    backbone, head, score = (Cost(parameters[key], encoding[key], frame[key]) for key in ("backbone", "head", "score"))
    try:
        official = count_parameters(config)
    except WeightsError:
        official = None
    return Profile(config, templates, backbone, head, score, official)


def published_templates(name: str) -> int:
    """How many the paper's FLOPs are for, found by counting: two (one of them online) in Table 1, one in Table 3."""
    return 1 if name in STUDIES else 2


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _by_part(counts: Mapping[str, int]) -> Counter[str]:
    """Counts by the path of a variable or the scope of a module, summed for backbone, head and score module."""
    parts = Counter[str]()
    for scope, count in counts.items():
        modules = scope_modules(scope)
        parts["head" if "head" in modules else "score" if "score" in modules else "backbone"] += count
    return parts


def tables(profiles: Sequence[Profile]) -> str:
    """Parameters and FLOPs beside the paper's, as two aligned tables."""
    parameters: list[tuple[str, ...]] = [("", *PARAMETER_COLUMNS, "")]
    flops: list[tuple[str, ...]] = [("", *FLOP_COLUMNS, "")]
    numbers: tuple[int | None, ...]
    for profile in profiles:
        config, templates, backbone, head, score, official = profile
        name, whole = config.name, profile.whole
        published = PAPER.get(name, Published())
        numbers = (backbone.parameters, head.parameters, score.parameters, whole.parameters, official)
        parameters.append((name, *_cells(numbers, 1e6, whole.parameters, published.parameters), published.row))

        numbers = (backbone.encoding, backbone.frame, backbone.flops, head.flops, score.flops, whole.frame, whole.flops)
        comparable = published.flops if templates == published_templates(name) else None
        row = published.row if comparable else ""
        flops.append((name, str(templates), *_cells(numbers, 1e9, whole.flops, comparable), row))
    text = (
        "Parameters, millions. official: with the tensors that official files hold and no forward pass reads.\n"
        f"{aligned(parameters, left=(0, len(parameters[0]) - 1))}\n"
        "FLOPs, 10^9 multiply-accumulates. encoding: the backbone on the templates, once a template change (-: with\n"
        "the search region, on every frame); search: the backbone on a frame; frame: search, head, score; whole: all.\n"
        f"{aligned(flops, left=(0, len(flops[0]) - 1))}"
    )
    if any(cell.endswith("*") for row in (*parameters, *flops) for cell in row):
        text += f"\n* more than {DIFFERENCE_TO_EXPLAIN:.0%} from the paper: docs/models.md says why\n"
    return text


def _cells(numbers: Sequence[int | None], unit: float, ours: int, paper: float | None) -> list[str]:
    """Numbers in units, then the paper's, and by how much ours differs from it."""
    cells = [f"{number / unit:.2f}" if number else "-" for number in numbers]
    if paper is None:
        return [*cells, "-", "- "]
    difference = ours / unit / paper - 1
    return [*cells, f"{paper:.2f}", f"{difference:+.2%}{'*' if abs(difference) > DIFFERENCE_TO_EXPLAIN else ' '}"]
