"""numba's compiler, with its cache on disk where one can be written, and what compiled loops lack: a prefetch, a quick maximum."""

import contextlib
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import no_type_check

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from plumbing import files

ROOT = Path(__file__).resolve().parent.parent

UNUSED_DAYS = 30  # after which the kernels of another version are removed


@functools.cache
def keep_by_version():
    """Let numba keep what it compiles in a folder of this version of all compiled code, unless the user names another.

    By itself numba keeps a function until its own file changes, also when what it calls in another file has: after an
    update it would go on with the old loop.
    """
    # pyrefly: ignore[missing-attribute]  # numba sets it when it reads the environment
    if numba.config.CACHE_DIR:
        return
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]):
        content = file.read_bytes()
        if b"@compiled(" in content or b"@intrinsic" in content:
            digest.update(content)
    own = Path(__file__).parent / "__pycache__"
    place = own if os.access(own if own.exists() else own.parent, os.W_OK) else files.cache_folder()
    for old in place.glob("numba-*"):
        with contextlib.suppress(OSError):  # another process removes it
            if time.time() - old.stat().st_mtime > UNUSED_DAYS * 86_400:
                shutil.rmtree(old)
    # pyrefly: ignore[missing-attribute]
    numba.config.CACHE_DIR = str(place / f"numba-{digest.hexdigest()[:16]}")


def compiled(fastmath: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """Decorate a function: `numba.njit` without the interpreter's lock, kept on disk for the next process.

    What a compiled function calls becomes part of it: as a function of its own, later processes would load another copy
    of it, with other roundings. Dividing by zero gives infinity or NaN, as in numpy: to check for it, numba would not
    vectorise the loop. Where neither the code's folder nor the user's cache can be written to, it is compiled anew in
    each process.
    """
    keep_by_version()

    def decorate(function: Callable) -> Callable:
        njit = functools.partial(
            numba.njit, nogil=True, forceinline=True, error_model="numpy", fastmath=set(fastmath)
        )
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
