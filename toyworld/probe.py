"""What the demo's encoders know of the planted factors, read from a saved folder as anybody would load it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toyworld import scenes


def probe(name: str, folder: Path, fit: int = 3_000, test: int = 1_000) -> dict[str, dict[str, float]]:
    """Per tower of an encoder: the mean AUC of linear probes for each group of factors, and retrieval.

    Probes are fitted on the first `fit` evaluation rows and scored, as retrieval is, on the next `test`.
    """
    rows = range(fit + test)
    if name != "clip":
        return {name: probe_groups(first_token(name, folder, rows), fit)}
    image, text = first_token(name, folder, rows), end_of_text(folder, rows)
    found = {"R@5": retrieval(*embeddings(folder, rows[fit:]))}
    return {"clip image": probe_groups(image, fit) | found, "clip text": probe_groups(text, fit) | found}


def load_clip(folder: Path) -> tuple[Any, ...]:
    """The model in evaluation mode, its picture transform, and its tokenizer."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def embeddings(
    folder: Path, rows: Sequence[int]
) -> tuple[Float[np.ndarray, "row width"], Float[np.ndarray, "row width"]]:
    """CLIP's joint embeddings of the pictures and of the first captions, of unit length."""
    model, transform, tokenizer = load_clip(folder)
    image = model.encode_image(torch.stack([transform(scenes.picture(row)) for row in rows]), normalize=True)
    text = model.encode_text(tokenizer([scenes.captions(row)[0] for row in rows]), normalize=True)
    return image.numpy(), text.numpy()


def retrieval(
    image: Float[np.ndarray, "row width"], text: Float[np.ndarray, "row width"], within: int = 5
) -> float:
    """The share of rows whose partner is among the nearest `within`, the mean of both directions."""
    near = image @ text.T
    own = np.diag(near)
    return float(((near > own[:, None]).sum(1) < within).mean() + ((near > own).sum(0) < within).mean()) / 2


@torch.no_grad()
def first_token(name: str, folder: Path, rows: Sequence[int]) -> Float[np.ndarray, "row width"]:
    """The last block's output at token 0 of each row's picture (or first caption, for bert)."""
    from transformers import AutoImageProcessor, AutoModel, PreTrainedTokenizerFast

    if name == "clip":
        model, transform, _ = load_clip(folder)
        batch = torch.stack([transform(scenes.picture(row)) for row in rows])
        return last_block(model.visual.transformer.resblocks, lambda: model.visual(batch))[:, 0].numpy()
    model = AutoModel.from_pretrained(folder).eval()
    if name == "bert":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        batch = tokenizer([scenes.captions(row)[0] for row in rows], padding=True, return_tensors="pt")
    else:
        processor = AutoImageProcessor.from_pretrained(folder)
        batch = processor([scenes.picture(row) for row in rows], return_tensors="pt")
    return model(**batch, output_hidden_states=True).hidden_states[-1][:, 0].numpy()


@torch.no_grad()
def end_of_text(folder: Path, rows: Sequence[int]) -> Float[np.ndarray, "row width"]:
    """The last block's output at the end of each row's first caption."""
    model, _, tokenizer = load_clip(folder)
    ids = tokenizer([scenes.captions(row)[0] for row in rows])
    hidden = last_block(model.transformer.resblocks, lambda: model.encode_text(ids))
    return hidden[torch.arange(len(ids)), ids.argmax(-1)].numpy()


def last_block(blocks: nn.ModuleList, forward: Callable[[], object]) -> Float[Tensor, "row token width"]:
    """What the last of `blocks` puts out while `forward` runs."""
    kept = []
    handle = blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        forward()
    finally:
        handle.remove()
    return kept[0]


def probe_groups(hidden: Float[np.ndarray, "row width"], fit: int) -> dict[str, float]:
    """The mean AUC of linear probes over the factors of each group, on rows that they were not fitted on."""
    planted = [scenes.factors(row) for row in range(len(hidden))]
    names = list(planted[0])
    truth = np.array([[factors[name] for name in names] for factors in planted])
    scores = auc(ridge(hidden, truth, fit), truth[fit:])
    groups = dict.fromkeys(name.split("=")[0] for name in names)
    return {
        group: float(np.mean(scores[[name.startswith(f"{group}=") for name in names]])) for group in groups
    }


def ridge(
    hidden: Float[np.ndarray, "row width"], truth: Bool[np.ndarray, "row factor"], fit: int
) -> Float[np.ndarray, "test factor"]:
    """Scores of the test rows, by least squares on the first `fit` rows with a slight ridge."""
    x = (hidden - hidden.mean(0)) / (hidden.std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    fitted, y = x[:fit], truth[:fit].astype(np.float64)
    return x[fit:] @ np.linalg.solve(fitted.T @ fitted + np.eye(x.shape[1]), fitted.T @ y)


def auc(
    score: Float[np.ndarray, "row factor"], truth: Bool[np.ndarray, "row factor"]
) -> Float[np.ndarray, " factor"]:
    """The area under each column's ROC curve: how often a true row outranks a false one."""
    rank = score.argsort(0).argsort(0) + 1
    true = truth.sum(0)
    return ((rank * truth).sum(0) - true * (true + 1) / 2) / (true * (len(truth) - true))
