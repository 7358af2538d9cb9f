"""The model card of a run's SAEs, for the Hugging Face hub: what they are of, how good they are, how they were made."""

import re
import shlex
from pathlib import Path
from typing import TypedDict

import features
import wrappedmodels
from encoders.hub import DINOV2
from plumbing.commandline import without_folders

TEMPLATE = Path(__file__).with_name("card.md.j2")

TAGS = ("sparse-autoencoder", "sae", "mechanistic-interpretability", "interpretability")

SETTINGS = ("recipe", "expansion_factor", "epochs", "batch_size", "lr", "precision", "seed", "data_seed")

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LayerRow(TypedDict):
    """A line of the card's table."""

    name: str
    hook: str
    d_in: int
    d_sae: int
    k: int
    fvu: str
    fvu_recorded: str
    l0: str
    dead: str


def card(run: features.Run, repository: str) -> str:
    """The card of a run's SAEs as Markdown with a YAML head; `repository`: OWNER/NAME on the hub."""
    from huggingface_hub import ModelCard, ModelCardData

    manifest = run.manifest
    encoder, dataset = manifest["encoder"], manifest["dataset"]
    training = {name: manifest["training"].get(name) for name in SETTINGS}
    head = ModelCardData(
        library_name="saelens",
        tags=[*TAGS, encoder["modality"], manifest["activation"]],
        base_model=base_model(run),
        datasets=hub_data(dataset["name"]),
    )
    text = ModelCard.from_template(
        head,
        template_path=str(TEMPLATE),
        repository=repository,
        kind="TopK",
        checkpoint=without_folders(encoder["checkpoint"]),
        model=encoder["model"],
        modality=encoder["modality"],
        is_random=encoder.get("random_weights") is not None,
        layers=[layer_row(run, layer) for layer in run.layers],
        evaluated=manifest["evaluated_samples"],
        held_out=manifest["held_out"],
        token=manifest["token"],
        dataset=without_folders(dataset["name"]),
        n_samples=run.n_samples,
        fingerprint=run.fingerprint,
        training={name: value for name, value in training.items() if value is not None},
        versions=manifest["versions"],
        command=shlex.join(without_folders(word) for word in manifest["command"] or ["(from Python)"]),
    )
    return str(text)


def layer_row(run: features.Run, layer: str) -> LayerRow:
    """What the card's table says of a layer."""
    manifest = run.manifest
    sae, blocks = manifest["sae"][layer], hooked(run)
    number = layer.removeprefix("layer")
    scores = {name: manifest[name][layer] for name in ("fvu", "fvu_recorded", "l0", "dead_fraction")}
    fvu, fvu_recorded, l0, dead = ("-" if value is None else f"{value:.3f}" for value in scores.values())
    return {
        "name": layer,
        "hook": f"{blocks}.{number}" if blocks else f"block {number}",
        "d_in": sae["d_in"],
        "d_sae": sae["d_sae"],
        "k": sae["k"],
        "fvu": fvu,
        "fvu_recorded": fvu_recorded,
        "l0": l0,
        "dead": dead,
    }


def hooked(run: features.Run) -> str:
    """The path of the blocks that were hooked; "" where the model was asked for it."""
    encoder = run.manifest["encoder"]
    row = wrappedmodels.REGISTRY.get(encoder["model"])
    return encoder.get("blocks") or (row.blocks if row else "")


def base_model(run: features.Run) -> str | None:
    """The encoder's repository on the hub; None where it is a folder, or has random weights."""
    encoder = run.manifest["encoder"]
    checkpoint, row = encoder["checkpoint"], wrappedmodels.REGISTRY.get(encoder["model"])
    if (
        row is None
        or encoder.get("random_weights") is not None
        or checkpoint.startswith(("toyworld/", "local-dir:"))
    ):
        return None
    if Path(checkpoint).is_dir() or Path(checkpoint).is_absolute():
        return None
    if row.loader.startswith("from_open_clip") and not checkpoint.startswith("hf-hub:"):
        from encoders.from_open_clip import open_clip_name  # it imports torch

        return open_clip_name(checkpoint)[2] or None
    name = DINOV2.get(checkpoint, checkpoint.removeprefix("hf-hub:"))
    if row.loader.startswith("from_timm") and "/" not in name:
        name = f"timm/{name}"
    return name if HUB_NAME.fullmatch(name) else None


def hub_data(name: str) -> list[str] | None:
    """The data set's name on the hub, where it is from there (hf:OWNER/NAME)."""
    own = name.removeprefix("hf:")
    return [own] if own != name and HUB_NAME.fullmatch(own) and not Path(own).exists() else None
