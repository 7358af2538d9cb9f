"""Share a run's SAEs: a folder in SAELens' layout with a model card, on the Hugging Face hub (--to) or on disk (--out)."""

import json
import re
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import features
from features import Run
from plumbing import files
from plumbing.commandline import Parser, folder, script, without_folders
from plumbing.errors import UserError
from plumbing.hub import in_one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")  # of an SAE, by SAELens' names

NEVER = 1e-10  # is added to a frequency, so that it has a logarithm, as SAELens does


@script
def main(argv=None) -> Path | str:
    """Write the folder, upload it, or both; returns the folder's path, or the address on the hub."""
    arguments = parse(argv)
    run = features.open_run(arguments.run)
    check(run, arguments)
    if not arguments.to:
        write(run, arguments.out, f"OWNER/{run.name}")
        print(
            f"written: {arguments.out}; to upload the same: uv run share.py --run {run.name} --to OWNER/NAME"
        )
        return arguments.out
    api = connect(arguments.to)
    with tempfile.TemporaryDirectory() as temporary:
        whole = arguments.out or Path(temporary)
        write(run, whole, arguments.to)
        return upload(api, run, whole, arguments.to, arguments.private)


def parse(argv) -> Namespace:
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    add("--run", required=True, help="whose SAEs to share, a folder name in sae_features/")
    add(
        "--to",
        metavar="OWNER/NAME",
        help="upload to this repository of the hub, which is made where it is missing",
    )
    add("--out", type=folder, metavar="DIR", help="write the same into this new folder, and show the card")
    add("--private", action="store_true", help="make a repository that only you see")
    arguments = parser.parse_args(argv)
    if not arguments.to and not arguments.out:
        raise UserError("nothing to do: add --to OWNER/NAME, --out DIR, or both")
    if arguments.private and not arguments.to:
        raise UserError("--private is of a repository on the hub: add --to OWNER/NAME")
    if arguments.to and not re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.to):
        raise UserError(f"--to {arguments.to!r} is no name of a repository: type OWNER/NAME")
    return arguments


def check(run: Run, arguments: Namespace):
    """Refuse a run that has no SAEs of its own, and a folder that holds something already."""
    training = run.manifest.get("training") or {}
    if given := training.get("sae"):
        raise UserError(
            f"run {run.name!r} was recorded with the SAEs of {given} and has none of its own: share those"
        )
    missing = [
        layer for layer in run.layers if not all((run.path / layer / file).is_file() for file in FILES[:2])
    ]
    if missing:
        raise UserError(
            f"run {run.name!r} has no saved SAE of {', '.join(missing)}: record it again to share it"
        )
    if arguments.out and arguments.out.is_dir() and any(arguments.out.iterdir()):
        raise UserError(f"--out {arguments.out} is not empty: name a new folder")


def write(run: Run, out: Path, repository: str):
    """Write each layer's three files and the card, and print the card."""
    from showing.card import card

    for layer in run.layers:
        files.make_folder(out / layer)
        files.write_text(out / layer / FILES[0], json.dumps(config(run, layer), indent=2) + "\n")
        with files.replacing(out / layer / FILES[1]) as temporary:
            temporary.write_bytes((run.path / layer / FILES[1]).read_bytes())
        with files.replacing(out / layer / FILES[2]) as temporary:
            temporary.write_bytes(sparsity(run, layer))
    text = card(run, repository)
    files.write_text(out / "README.md", text)
    print(text)


def config(run: Run, layer: str) -> dict:
    """A layer's cfg.json with what the hub's readers want to know, and without this machine's folders."""
    from showing.card import hooked

    manifest = run.manifest
    found = json.loads((run.path / layer / FILES[0]).read_text(encoding="utf-8"))
    named = {
        "model_name": without_folders(manifest["encoder"]["checkpoint"]),
        "dataset_path": without_folders(manifest["dataset"]["name"]),
        "hook_path": f"{hooked(run)}.{layer.removeprefix('layer')}",
        "token": manifest["token"],
        "l0": manifest["l0"][layer],
        "num_dead_features": round(manifest["dead_fraction"][layer] * found["d_sae"]),
        "neuronpedia_id": None,
    }
    return found | {"metadata": (found.get("metadata") or {}) | named}


def sparsity(run: Run, layer: str) -> bytes:
    """sparsity.safetensors: log10 of the share of samples on which each latent is active, float32 [d_sae]."""
    import numpy as np
    from safetensors.numpy import save

    counts = np.zeros(run.d_sae(layer), dtype=np.int64)
    for block in run.blocks(layer):
        counts += np.bincount(block.indices[block.data > 0], minlength=len(counts))
    return save({"sparsity": np.log10(counts / run.n_samples + NEVER).astype(np.float32)})


def connect(repository: str) -> "HfApi":
    """The hub's client; a `UserError` where there is no token, or no network is wanted."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{repository} cannot be uploaded: HF_HUB_OFFLINE is set; unset it, or write with --out DIR"
        )
    if get_token() is None:
        raise UserError(
            f"{repository} cannot be uploaded without a token: make one that may write on the hub's page of settings, "
            "then `hf auth login` (or set HF_TOKEN)"
        )
    return HfApi()


def upload(api: "HfApi", run: Run, whole: Path, repository: str, private: bool) -> str:
    """Upload the folder in one commit; returns its address. SAEs of other layers that are there stop it."""
    doing = f"{repository} cannot be uploaded"
    with in_one_line(doing):
        api.create_repo(repository, private=private, exist_ok=True)
        there = {
            file.partition("/")[0] for file in api.list_repo_files(repository) if file.endswith(FILES[0])
        }
    if others := sorted(there - set(run.layers)):
        raise UserError(
            f"{repository} holds {', '.join(others)} already, which run {run.name!r} has not: delete that there, or "
            "name another repository"
        )
    with in_one_line(doing):
        done = api.upload_folder(
            repo_id=repository, folder_path=whole, commit_message=f"Upload SAEs of run {run.name}"
        )
    address = f"{api.endpoint}/{repository}"
    print(f"uploaded: {address} (commit {done.oid[:12]})")
    encoder = run.manifest["encoder"]
    name = "train_text.py" if encoder["modality"] == "text" else "train_image.py"
    print(
        f"to record with them: uv run {name} --model {encoder['model']} --sae {repository} (and its --checkpoint)"
    )
    return address


if __name__ == "__main__":
    main()
