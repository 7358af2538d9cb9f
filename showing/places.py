"""Where in a picture a feature fires: a run's SAE applied to the patch tokens of the samples that stand for it."""

import base64
import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data import Pairs
from features import Run
from plumbing.errors import UserError
from plumbing.progress import Progress
from showing.strips import Columns

if TYPE_CHECKING:
    import torch

    from encoders.wrapper import WrappedModel
    from saelens import SAE

SHOWN = 9  # of a feature's highest samples
BATCH = 32  # pictures encoded at once
WHOLE = 0.97  # of a side, above which all of it is seen: edges are rounded to pixels
PROBE = 640, 480  # pixels of the picture that tells what part of one the encoder sees
WORDS = (
    "the same SAE, applied to the patch tokens of this layer; the brightest is the feature's highest patch in its "
    f"{SHOWN} highest pictures. "
)
RECORDED = {
    "mean": "The activation beside a picture is the mean over all of these patches.",
    "cls": "The activation beside a picture is that of the CLS token, which is no patch: the patches show what they "
    "have of the feature, not what the CLS token drew on.",
}

Wanted = Mapping[int, Int[np.ndarray, " feature"]]  # by row: the features that it is shown for


class Places(NamedTuple):
    """By feature, then row: base64 of a uint8 grid [side, side], in shares of the feature's highest patch.

    `words` say what the page shows. `crop`: the patches cover the middle square of this share of the picture's
    shorter side; None: the whole picture.
    """

    grids: Mapping[int, Mapping[int, str]]
    side: int
    words: str
    crop: float | None


def places(run: Run, layer: str, columns: Columns, pairs: Pairs) -> Places:
    """Encode the pictures of each feature's highest samples once more; pictures that cannot be read have no grid.

    Errors: what the run recorded is of no picture or of no place in it; the encoder's patches are no square grid.
    """
    import saelens

    check(run, layer)
    wanted, found = wanted_rows(columns), dict[int, dict[int, np.ndarray]]()
    with in_one_line():
        encoder = load(run)
        sae = saelens.load(run.path / layer).to(encoder.device)
        for row, codes in patch_codes(encoder, sae, int(layer.removeprefix("layer")), wanted, pairs):
            for feature, code in zip(wanted[row].tolist(), codes.T, strict=True):
                found.setdefault(feature, {})[row] = code
    n_patches = next((len(code) for by_row in found.values() for code in by_row.values()), 1)
    words = WORDS + RECORDED[run.manifest["token"]]
    grids = {feature: encoded(by_row) for feature, by_row in found.items()}
    return Places(grids, math.isqrt(n_patches), words, seen_share(encoder))


def check(run: Run, layer: str):
    """Refuse a run whose activations have no place in a picture, before its encoder is loaded."""
    token = run.manifest.get("token")
    if (run.manifest.get("encoder") or {}).get("modality") != "image":
        raise UserError(f"run {run.name!r} is of no pictures: leave out --where")
    if token not in RECORDED:
        raise UserError(
            f"run {run.name!r} recorded the token {token!r}: --where takes runs of {' or '.join(RECORDED)}; leave it out"
        )
    if not (run.path / layer / "sae_weights.safetensors").is_file():
        raise UserError(f"run {run.name!r} has no SAE in {run.path / layer}/: leave out --where")


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Turn a GPU's lack of memory, for the encoder or later, into a `UserError` that fits --where."""
    import torch

    try:
        yield
    except (UserError, torch.OutOfMemoryError) as error:
        if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
            raise
        raise UserError(
            "the GPU has too little memory for --where: free some, put CUDA_VISIBLE_DEVICES= before the command to "
            "use the CPU, or leave out --where"
        ) from error


def load(run: Run) -> "WrappedModel":
    """The encoder that a run was recorded of."""
    import torch

    import wrappedmodels

    told, seed = run.manifest["encoder"], run.manifest["encoder"].get("random_weights")
    return wrappedmodels.load(
        str(told["model"]),
        str(told["checkpoint"]),
        token="mean" if run.manifest["token"] == "mean" else "own",
        blocks=str(told["blocks"]) if told.get("blocks") else None,
        device="cuda" if torch.cuda.is_available() else "cpu",
        random_weights=None if seed is None else int(seed),
        encoder_precision=str(told.get("encoder_precision", "float32")),
    )


def wanted_rows(columns: Columns) -> Wanted:
    """Each feature's highest samples, by row."""
    found: dict[int, list[int]] = {}
    for feature in range(len(columns.starts) - 1):
        rows, values = columns.of_feature(feature)
        for row in rows[np.argsort(-values, kind="stable")[:SHOWN]].tolist():
            found.setdefault(row, []).append(feature)
    return {row: np.array(found[row]) for row in sorted(found)}


def patch_codes(
    encoder: "WrappedModel", sae: "SAE", layer: int, wanted: Wanted, pairs: Pairs
) -> Iterator[tuple[int, Float[np.ndarray, "patch feature"]]]:
    """The codes of the patches of every wanted picture that can be read: those of the features it is wanted for."""
    import torch

    rows = list(wanted)
    for start in Progress(range(0, len(rows), BATCH), "where", leave=False, disable=len(rows) <= BATCH):
        items, read = [], []
        for row in rows[start : start + BATCH]:
            try:
                items.append(encoder.preprocess(pairs.image(row)))
                read.append(row)
            except UserError:  # it is missing: the thumbnails say so
                continue
        if not items:
            continue
        batch = encoder.activations(encoder.collate(items), [layer])
        with torch.no_grad():
            for row, tokens in zip(read, patches(encoder, batch.layers[layer], batch.mask), strict=True):
                codes = sae.encode(tokens.float())[:, torch.from_numpy(wanted[row]).to(tokens.device)]
                yield row, codes.cpu().numpy()


def patches(encoder: "WrappedModel", tokens: "torch.Tensor", mask: "torch.Tensor") -> list["torch.Tensor"]:
    """The patch tokens [patch, d_in] of each item: neither registers nor CLS. Error: they are no square grid."""
    found = [own[keep] for own, keep in zip(tokens, mask, strict=True)]
    numbers = sorted({len(own) for own in found})
    has_cls = not _is_square(numbers[0])  # then it stands first
    if len(numbers) > 1 or not _is_square(numbers[0] - has_cls):
        raise UserError(
            f"{encoder.checkpoint} has {', '.join(map(str, numbers))} tokens a picture, which are no square grid of "
            "patches: leave out --where"
        )
    return [own[has_cls:] for own in found]


def _is_square(number: int) -> bool:
    return number == math.isqrt(number) ** 2


def encoded(by_row: Mapping[int, Float[np.ndarray, " patch"]]) -> dict[int, str]:
    """A feature's grids in shares of its highest patch, as base64 of uint8."""
    highest = max(float(code.max()) for code in by_row.values()) or 1.0
    return {
        row: base64.b64encode(np.rint(255 * code / highest).astype(np.uint8).tobytes()).decode()
        for row, code in by_row.items()
    }


def seen_share(encoder: "WrappedModel") -> float | None:
    """What part of a picture the patches cover: None all of it, else the middle square of this share of its shorter side.

    It is read off pictures: black and white tell how colours become numbers, and a ramp where the edges are.
    """
    from PIL import Image

    width, height = PROBE
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    black, white = (np.full((height, width), value) for value in (0.0, 255.0))
    ramps = np.stack([across, down, black], axis=2)
    zero, one, ramp = (
        pixels(encoder, Image.fromarray(np.rint(colours).astype(np.uint8)))
        for colours in (np.stack([black] * 3, 2), np.stack([white] * 3, 2), ramps)
    )
    share = (ramp - zero) / np.where(one == zero, 1, one - zero)  # [colour, height, width], 0 to 1
    seen = [extent(share[0].mean(axis=0)), extent(share[1].mean(axis=1))]
    if min(seen) > WHOLE:
        return None
    return 1.0 if seen[1] > WHOLE else round(float(seen[1]), 3)


def pixels(encoder: "WrappedModel", picture) -> Float[np.ndarray, "colour height width"]:
    """A picture as the encoder gets it. Error: not as colours, rows and columns."""
    for value in encoder.collate([encoder.preprocess(picture)]).values():
        if value.ndim == 4 and value.shape[1] == 3:
            return value[0].double().numpy()
    raise UserError(f"{encoder.checkpoint} takes pictures as no square of pixels: leave out --where")


def extent(ramp: Float[np.ndarray, " pixel"]) -> float:
    """How much of a ramp from 0 to 1 is seen, from the middle half of the pixels, which no edge blurs."""
    quarter = len(ramp) // 4
    slope = (ramp[-quarter - 1] - ramp[quarter]) / (len(ramp) - 2 * quarter - 1)
    return float(slope * len(ramp))
