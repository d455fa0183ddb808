"""Checks shapes and dtypes of a package's functions at every call, by jaxtyping and beartype.

jaxtyping's own decorator checks the arguments twice and prepares every function when it is imported, whether it takes
arrays or not: a fifth of the time of tracing, and seconds of imports. mypy has looked at all other types.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jaxtyping
import numpy as np
from beartype import beartype
from flax.core import meta
from flax.core.scope import Scope

_jaxtyped = jaxtyping.jaxtyped


def check_shapes(package: str) -> None:
    """Before anything imports the package: from then on, a wrong shape or dtype raises beartype's error."""

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(checked: Any) -> Any:
            if isinstance(checked, type):
                return _jaxtyped(checked, typechecker=typechecker)
            annotations = checked.__annotations__.values()
            if any("{" in str(annotation) for annotation in annotations):  # a side that is the value of an argument
                return _jaxtyped(beartype(checked), typechecker=None)
            return _checked_from_the_first_call(checked) if any(map(_has_shape, annotations)) else checked

        return decorate

    # What the hook writes into the modules that it imports.
    jaxtyping.jaxtyped = decorator
    jaxtyping.install_import_hook(package, "beartype.beartype")


def check_parameters_once() -> None:
    """Flax compares the shape of a parameter once for each initialiser, its arguments, and the shape that is there.

    It would trace the initialiser of every parameter each time that a model is traced: a third of that time.
    """
    param, compared = Scope.param, set()

    @functools.wraps(param)
    def param_of_known_shape(self: Scope, name: str, init_fn: Any, *arguments: Any, unbox: bool = True) -> Any:
        if not self.has_variable("params", name):
            return param(self, name, init_fn, *arguments, unbox=unbox)
        value = self.get_variable("params", name)
        case = (init_fn, repr(arguments), tuple(map(np.shape, jax.tree.leaves(value))))
        if case not in compared:
            param(self, name, init_fn, *arguments, unbox=unbox)
            compared.add(case)
        else:
            self.reserve(name, "params")
        return meta.unbox(value) if unbox else value

    Scope.param = param_of_known_shape


def _has_shape(annotation: Any) -> bool:
    if isinstance(annotation, list):  # arguments of a callable
        return any(map(_has_shape, annotation))
    is_shape = isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_shape or any(map(_has_shape, get_args(annotation)))


def _checked_from_the_first_call(function: Callable[..., Any]) -> Callable[..., Any]:
    prepared = functools.cache(lambda: beartype(function))

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        # In it, an axis has one size.
        with _jaxtyped("context"):
            return prepared()(*arguments, **named)

    return checked
