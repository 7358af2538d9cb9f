"""numba's compiler, with its cache on disk where one can be written, and what compiled loops lack: a prefetch, a quick maximum."""

import functools
from collections.abc import Callable, Collection
from typing import no_type_check

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def compiled(fastmath: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """Decorate a function: `numba.njit` without the interpreter's lock, kept on disk for the next process.

    Dividing by zero gives infinity or NaN, as in numpy: to check for it, numba would not vectorise the loop. Where
    neither the code's folder nor the user's cache can be written to, it is compiled anew in each process.
    """

    def decorate(function: Callable) -> Callable:
        njit = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath=set(fastmath))
        try:
            return njit(cache=True)(function)
        except RuntimeError:  # numba found no place for its cache
            return njit()(function)

    return decorate


@intrinsic
@no_type_check
def prefetch(context, array, index):
    """Fetch array[index] into the cache ahead of its use, without waiting for it."""

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], view, [arguments[1]])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(word, hint) for hint in (0, 3, 1)]  # for reading, into every cache level, data
        builder.call(function, [builder.bitcast(pointer, byte), *hints])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
@no_type_check
def higher(context, a, b):
    """The higher of two float64 that are no NaN: loops with it are vectorised, those with Python's max are not."""

    def generate(context, builder, signature, arguments):
        double = ir.DoubleType()
        kind = ir.FunctionType(double, [double, double])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f64")
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float64(types.float64, types.float64), generate
