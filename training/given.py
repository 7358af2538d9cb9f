"""Given SAEs (`--sae DIR`): found in a folder, each assigned to a layer, and loaded in place of trained ones."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from encoders.wrapper import WrappedModel
from plumbing.errors import UserError
from sae import CONFIG_FILE, TopKSAE, read_config
from training.saves import load_saes, save_saes
from training.work import Work

LAYER = re.compile(r"(?:layer|block)s?[._-]?(\d+)", re.IGNORECASE)  # in an SAE's hook_name or folder name


def take_given(work: Work, folder: Path) -> list[dict[int, TopKSAE]]:
    """Load the SAEs in `folder`, check their widths, and save a copy with the run; as `fit` returns them."""
    found = find_saes(folder, work.stream.encoder, work.stream.layers)
    saes = load_saes(work, found)
    batch = next(iter(work.stream.batches([[0]])))
    for layer, sae in saes.items():
        width = batch.layers[layer].shape[-1]
        if sae.d_in != width:
            raise UserError(
                f"the SAE in {found[layer]} takes activations of width {sae.d_in}, and layer {layer} of "
                f"{work.stream.encoder.checkpoint} has {width}: name the encoder that it was trained on"
            )
    save_saes(work, [saes])
    return [saes]


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
            f"--sae {folder} holds no SAE ({CONFIG_FILE}), nor do its subfolders: see the README's run folder"
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
    `blocks.8.hook_resid_post`, `encoder.layer.11`.
    """
    config = read_config(folder / CONFIG_FILE)
    metadata = config.get("metadata")
    own = {**config, **(metadata if isinstance(metadata, dict) else {})}
    names = [own.get("hook_name"), Path(os.path.abspath(folder)).name]
    numbers = {int(number) for name in names for number in LAYER.findall(str(name))}
    if isinstance(own.get("hook_layer"), int):
        numbers.add(own["hook_layer"])
    if len(numbers) > 1:
        raise UserError(
            f"--sae {folder} could be of layer {' or '.join(map(str, sorted(numbers)))} (its {CONFIG_FILE} says "
            f"{own.get('hook_name')!r}): rename the folder, or correct hook_name"
        )
    return next(iter(numbers), None)
