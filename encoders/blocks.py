"""The blocks of a model: where they are, and what goes into them and comes out."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plumbing.errors import UserError


def hf_blocks(tower: nn.Module) -> str:
    """The path of the one outer ModuleList that is as long as the configuration has layers or stages."""
    config = tower.config
    length = getattr(config, "num_hidden_layers", None) or len(getattr(config, "depths", None) or ())
    lists = {path: found for path, found in block_lists(tower).items() if isinstance(found, nn.ModuleList)}
    found = outermost([path for path, blocks in lists.items() if len(blocks) == length > 0])
    kind = type(tower).__name__
    if not length:
        raise UserError(
            f"the configuration of this {kind} does not say how many blocks it has; {choose_blocks(tower)}"
        )
    if len(found) != 1:
        raise UserError(
            f"{len(found)} lists of modules are as long as the {length} layers of the configuration of this "
            f"{kind}; {choose_blocks(tower)}"
        )
    return found[0]


def find_blocks(tower: nn.Module, path: str) -> list[nn.Module]:
    """The modules of the list at a dotted path, or at the one that ends so; or those of several paths."""
    if "," in path:
        return named_modules(tower, path)
    lists = block_lists(tower)
    found = [name for name in lists if name == path] or [name for name in lists if name.endswith(f".{path}")]
    if len(found) != 1:
        raise UserError(f"there are no blocks at {path!r}; {choose_blocks(tower)}")
    return list(lists[found[0]])


def named_modules(tower: nn.Module, paths: str) -> list[nn.Module]:
    """The modules at several dotted paths, between commas."""
    modules, named = dict(tower.named_modules()), paths.split(",")
    if unknown := [path for path in named if path not in modules]:
        raise UserError(f"there is no module {unknown[0]!r}; {choose_blocks(tower)}")
    if len(set(named)) < len(named):
        raise UserError(f"--blocks {paths} names a module twice")
    return [modules[path] for path in named]


def block_lists(tower: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """{dotted path: list of modules}, those that might be blocks."""
    kinds = nn.ModuleList | nn.Sequential
    return {path: module for path, module in tower.named_modules() if isinstance(module, kinds)}


def outermost(paths: list[str]) -> list[str]:
    """The paths that lie within no other."""
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def choose_blocks(tower: nn.Module) -> str:
    """What to type instead: the outer lists of modules and their lengths."""
    lists = {path: len(module) for path, module in block_lists(tower).items() if path and len(module) > 1}
    choices = [f"{path} ({lists[path]})" for path in outermost(list(lists))]
    return f"--blocks takes one of {', '.join(choices) or 'none'}"


class LastBlock(Exception):
    """Raised by the hook on the last wanted block: what lies behind it is not computed."""


@contextlib.contextmanager
def stopping(handles: Iterable[RemovableHandle]):
    """Run a model with hooks of which one may raise `LastBlock`; they are gone afterwards, whatever happened."""
    placed = []
    try:
        for handle in handles:
            placed.append(handle)
        with contextlib.suppress(LastBlock):
            yield
    finally:
        for handle in placed:
            handle.remove()


def outputs_of(blocks: Mapping[int, nn.Module], run: Callable[[], object]) -> dict[int, object]:
    """{number: what the block of that number returned} while `run` ran; of a block that was not called, nothing."""
    outputs: dict[int, object] = {}

    def keep(number: int, module: nn.Module, inputs: tuple, output: object):
        outputs[number] = output
        if len(outputs) == len(blocks):  # in whichever order the blocks are run
            raise LastBlock

    with stopping(
        block.register_forward_hook(functools.partial(keep, number)) for number, block in blocks.items()
    ):
        run()
    return outputs


def first_input_of(blocks: Iterable[nn.Module], run: Callable[[], object]) -> Tensor | None:
    """The first tensor that goes into whichever of the blocks `run` calls first; None where there is none."""
    caught: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, named: dict):
        caught.extend(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
        raise LastBlock

    with stopping(block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks):
        run()
    return caught[0] if caught else None
