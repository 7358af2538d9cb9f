"""Given SAEs (`--sae`): found in a folder, each assigned to a layer, and loaded in place of trained ones."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from encoders.wrapper import WrappedModel
from plumbing.errors import UserError
from sae import CONFIG_FILE
from saelens import SAE, read_config
from training.fetched import fetch_weights, locate
from training.saves import load_saes, save_saes
from training.work import Work

LAYER = re.compile(r"(?:layer|block)s?[._-]?(\d+)", re.IGNORECASE)  # in an SAE's hook_name or folder name

INSIDE = re.compile(r"mlp|attn|attention|hook_[qkvz]\b|resid_mid|\bln[12]?\b", re.IGNORECASE)  # of a block

SCALE_BATCHES = 8  # whose tokens give the mean norm, for an SAE of inputs of a fixed mean norm


def take_given(work: Work, name: str) -> list[dict[int, SAE]]:
    """Load the SAEs of `name` and save a copy with the run; as `fit` returns them."""
    saes = load_given(work, name)
    save_saes(work, [saes])
    return [saes]


def load_given(work: Work, name: str) -> dict[int, SAE]:
    """Load the SAEs of `name`, by layer, and check their widths."""
    found = find_saes(locate(name), work.stream.encoder, work.stream.layers)
    batch = next(iter(work.stream.batches([[0]])))
    for layer, folder in found.items():
        width, d_in = batch.layers[layer].shape[-1], read_config(folder / CONFIG_FILE).d_in
        if d_in != width:
            raise UserError(
                f"the SAE in {folder} takes activations of width {d_in}, and layer {layer} of "
                f"{work.stream.encoder.checkpoint} has {width}: name the encoder that it was trained on"
            )
    fetch_weights(name, found.values())
    return load_saes(work, found, input_scales(work, found))


def input_scales(work: Work, found: dict[int, Path]) -> dict[int, float]:
    """sqrt(d_in) / the mean norm of the tokens of the first batches, by layer, of those SAEs that ask for it."""
    asking = [layer for layer, folder in found.items() if read_config(folder / CONFIG_FILE).scales_input]
    if not asking:
        return {}
    size = work.jobs[0].settings.batch_size
    rows = range(min(SCALE_BATCHES * size, len(work.stream.pairs)))
    norms: dict[int, list[float]] = {layer: [] for layer in asking}
    for batch in work.stream.batches([list(rows[start : start + size]) for start in rows[::size]]):
        chosen = batch.real_tokens()
        for layer, own in norms.items():
            own += batch.flat(layer, chosen).double().norm(dim=1).tolist()
    return {layer: batch.layers[layer].shape[-1] ** 0.5 * len(own) / sum(own) for layer, own in norms.items()}


def find_saes(folder: Path, encoder: WrappedModel, layers: Sequence[int] | None) -> dict[int, Path]:
    """The folders of the SAEs in `folder`, by layer; `layers` None: of all layers that are there."""
    wanted = None if layers is None else encoder.resolve_layers(layers)
    found = by_layer(folder, wanted)
    wanted = sorted(found) if wanted is None else wanted
    if missing := [layer for layer in wanted if layer not in found]:
        raise UserError(
            f"--sae {folder} has SAEs of layers {sorted(found)}, not of {missing}: change --layers"
        )
    return {layer: found[layer] for layer in encoder.resolve_layers(wanted)}


def by_layer(folder: Path, wanted: list[int] | None) -> dict[int, Path]:
    """The SAE in `folder` itself, or the one in each of its subfolders, by layer.

    Where a single SAE does not say its layer, it is of the one layer that is wanted.
    """
    single = (folder / CONFIG_FILE).exists()
    folders = [folder] if single else sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if not folders:
        raise UserError(
            f"--sae {folder} holds no SAE ({CONFIG_FILE}), nor do its subfolders: see docs/run-folder.md"
        )
    found: dict[int, Path] = {}
    for one in folders:
        layer = stated_layer(one)
        if layer is None and single and wanted and len(wanted) == 1:
            layer = wanted[0]
        if layer is None:
            remedy = "add --layers with one number" if single else "name that folder alone, with --layers"
            raise UserError(f"--sae: neither {one}'s name nor its {CONFIG_FILE} states its layer: {remedy}")
        if layer in found:
            raise UserError(f"--sae: {found[layer]} and {one} are both of layer {layer}: name one of them")
        found[layer] = one
    return found


def stated_layer(folder: Path) -> int | None:
    """The layer that an SAE's cfg.json or its folder's name states; a `UserError` where they contradict each other.

    In a name it is the number behind "layer", "layers", "block" or "blocks": `top1_layer2`,
    `blocks.8.hook_resid_post`, `encoder.layer.11`. What goes into block 8 (`hook_resid_pre`) is layer 7.
    """
    config = read_config(folder / CONFIG_FILE)
    hook = str(config.hook_name)
    if INSIDE.search(hook):
        raise UserError(
            f"--sae {folder} is of {hook!r}, which is inside a block: only what comes out of one is recorded here"
        )
    names = [hook, Path(os.path.abspath(folder)).name]
    numbers = {int(number) - ("resid_pre" in name) for name in names for number in LAYER.findall(name)}
    if isinstance(config.hook_layer, int):
        numbers.add(config.hook_layer - ("resid_pre" in hook))
    if len(numbers) > 1:
        raise UserError(
            f"--sae {folder} could be of layer {' or '.join(map(str, sorted(numbers)))} (its {CONFIG_FILE} says "
            f"{config.hook_name!r}): rename the folder, or correct hook_name"
        )
    if -1 in numbers:
        raise UserError(
            f"--sae {folder} is of {hook!r}, what goes into the first block, which is no layer here"
        )
    return next(iter(numbers), None)
