"""Train the demo's encoders from scratch, save them in ordinary folders, and probe what they know.

`python -m demo.train_encoders` takes about ten minutes on one core and rewrites `toyworld/weights/`:

    clip    an open_clip image and text tower, trained on matching pictures and captions
    vit     a vision transformer, trained on which shapes occur
    dino    a DINOv2 architecture, trained to give two views of a picture the same code, with no labels
    bert    a BERT, trained to fill in masked words

Each has 3 blocks of width 96 and sees a picture as 16 patches of 8 x 8 pixels. The rows that it trains on are
not those of the evaluation pairs.
"""

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import nn
from tqdm import tqdm

from plumbing.commandline import Parser, positive
from toyworld import scenes

ENCODERS = Path(__file__).parent / "encoders"
WIDTH, BLOCKS, HEADS, PATCH = 96, 3, 3, 8
CONTEXT = 24  # tokens; the longest caption has 20 and two special ones
MEAN, STD = 0.45, 0.2  # of a pixel in 0..1, the same in all three channels
N_TRAIN = 40_000  # training scenes


class Recipe(NamedTuple):
    """How long an encoder trains; `rate` is AdamW's highest learning rate."""

    steps: int
    batch: int
    rate: float


RECIPES = {
    "clip": Recipe(2400, 128, 1e-3),
    "vit": Recipe(1600, 64, 1e-3),
    "dino": Recipe(1200, 64, 1e-3),
    "bert": Recipe(800, 128, 1e-3),
}


def main(argv=None) -> dict[str, dict[str, float]]:
    """Train, save and probe the encoders asked for; returns the table that it prints."""
    parser = Parser(__doc__.split("\n")[0])
    parser.prog = "python -m demo.train_encoders"
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="encoders to train")
    parser.add_argument("--out", type=Path, default=ENCODERS, help="folder to write the encoders into")
    parser.add_argument("--steps", type=positive, help="steps of training, in place of each encoder's own")
    parser.add_argument("--probe", action="store_true", help="only probe the folders as they are")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        seconds = {} if arguments.probe else train(arguments.only, arguments.out, arguments.steps)
        table = {
            tower: row for name in arguments.only for tower, row in probe(name, arguments.out / name).items()
        }
    finally:
        torch.set_num_threads(threads)
    print_table(table, seconds)
    return table


def train(names: list[str], out: Path, steps: int | None) -> dict[str, float]:
    """Train and save each encoder; returns the seconds that each took."""
    data, seconds = Training(N_TRAIN), {}
    for name in names:
        start = time.perf_counter()
        torch.manual_seed(scenes.TRAINING_SEED)
        recipe = RECIPES[name] if steps is None else RECIPES[name]._replace(steps=steps)
        TRAINERS[name](data, recipe, out / name)
        seconds[name] = time.perf_counter() - start
    return seconds


class Training:
    """The training scenes: `pixels` [scene, 32, 32, 3], `shapes` [scene, 6], `captions` [scene][5]."""

    def __init__(self, n_scenes: int):
        seed = scenes.TRAINING_SEED
        rows = tqdm(range(n_scenes), "training scenes", file=sys.stderr)
        self.pixels = torch.from_numpy(np.stack([scenes.pixels(row, seed) for row in rows]))
        self.shapes = torch.tensor([_shapes(row, seed) for row in range(n_scenes)])
        self.captions = [scenes.captions(row, seed) for row in range(n_scenes)]

    def pick(self, batch: int) -> Int[torch.Tensor, " batch"]:
        """Indices of a random batch."""
        return torch.randint(len(self.pixels), (batch,))

    def images(self, index: Int[torch.Tensor, " batch"]) -> Float[torch.Tensor, "batch 3 32 32"]:
        """Normalised pictures."""
        return (self.pixels[index].permute(0, 3, 1, 2).float() / 255 - MEAN) / STD

    def tokens(self, index: Int[torch.Tensor, " batch"], tokenizer) -> Int[torch.Tensor, "batch token"]:
        """One of the captions of each picture as token ids padded with 0."""
        texts = [self.captions[row][torch.randint(5, ()).item()] for row in index.tolist()]
        return tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids


def _shapes(row: int, seed: int) -> list[float]:
    shown = {thing.shape for thing in scenes.scene(row, seed).things}
    return [float(shape in shown) for shape in scenes.SHAPES]


def fit(name: str, parameters, recipe: Recipe, loss_of_batch, after_step=None):
    """AdamW with a tenth of warm-up and a cosine decay; `after_step(fraction done)` runs after each step."""
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.05, betas=(0.9, 0.98))
    warm_up = max(recipe.steps // 10, 1)
    progress = tqdm(range(recipe.steps), name, file=sys.stderr, mininterval=5)
    for step in progress:
        decay = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.rate * min((step + 1) / warm_up, decay)
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        if after_step is not None:
            after_step(step / recipe.steps)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


# ---- CLIP: the picture and the caption of a scene find each other in a batch (arXiv 2103.00020)


def train_clip(data: Training, recipe: Recipe, folder: Path):
    """Contrast pictures with captions in both directions."""
    import open_clip

    tokenizer = word_tokenizer(begin="<bos>", end="<eos>")
    save_clip_config(folder, tokenizer)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).train()

    def loss_of_batch() -> torch.Tensor:
        index = data.pick(recipe.batch)
        image, text, scale = model(data.images(index), data.tokens(index, tokenizer))
        logits, own = scale.clamp(max=100) * image @ text.T, torch.arange(recipe.batch)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    fit("clip", model.parameters(), recipe, loss_of_batch)
    from safetensors.torch import save_file

    save_file(
        {key: value.half().contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def save_clip_config(folder: Path, tokenizer):
    """What open_clip's `local-dir:` needs beside the weights."""
    model = {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": scenes.SIDE,
            "patch_size": PATCH,
            "layers": BLOCKS,
            "width": WIDTH,
            "head_width": WIDTH // HEADS,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "layers": BLOCKS,
            "width": WIDTH,
            "heads": HEADS,
            "hf_tokenizer_name": "local",  # any name: it says that the tokenizer is the one in this folder
        },
    }
    preprocess = {"mean": [MEAN] * 3, "std": [STD] * 3, "size": scenes.SIDE}
    tokenizer.save_pretrained(folder)
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def word_tokenizer(begin: str, end: str, mask: str | None = None):
    """A word is a token; padding is 0, and `end` has the highest id, where CLIP's pooling looks for it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", begin] + ([mask] if mask else [])
    names = [*special, *scenes.PUNCTUATION, *scenes.WORDS, end]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=begin,
        eos_token=end,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


# ---- ViT: which shapes occur


def train_vit(data: Training, recipe: Recipe, folder: Path):
    """Tell from the pooled first token which of the six shapes a picture shows."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = ViTModel(ViTConfig(image_size=scenes.SIDE, patch_size=PATCH, **_sizes())).train()
    head = nn.Linear(WIDTH, len(scenes.SHAPES))

    def loss_of_batch() -> torch.Tensor:
        index = data.pick(recipe.batch)
        logits = head(model(data.images(index)).pooler_output)
        return F.binary_cross_entropy_with_logits(logits, data.shapes[index])

    fit("vit", [*model.parameters(), *head.parameters()], recipe, loss_of_batch)
    save_half(model, folder)
    size = {"height": scenes.SIDE, "width": scenes.SIDE}
    ViTImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)


def _sizes() -> dict:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


# ---- DINO: a student matches a slow copy of itself across views (arXiv 2104.14294)


class ProjectionHead(nn.Module):
    """DINO's head: a bottleneck on the unit sphere, compared with prototypes."""

    def __init__(self, n_prototypes: int = 256, bottleneck: int = 48):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, bottleneck))

    def forward(self, x: Float[torch.Tensor, "n width"]) -> Float[torch.Tensor, "n prototype"]:
        return F.normalize(self.layers(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Student(nn.Module):
    """The encoder and its projection head."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.head = model, ProjectionHead()

    def forward(self, views: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n prototype"]:
        return self.head(self.model(views).last_hidden_state[:, 0])


def train_dino(data: Training, recipe: Recipe, folder: Path):
    """Match, from one view of a picture, the code that the teacher gives another view of it."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    sizes = _sizes()
    del sizes["intermediate_size"]  # four times the width, by its own mlp_ratio
    model = Dinov2Model(Dinov2Config(image_size=scenes.SIDE, patch_size=PATCH, **sizes)).train()
    student = Student(model)
    teacher = copy.deepcopy(student).requires_grad_(False)
    center = torch.zeros(256)

    def loss_of_batch() -> torch.Tensor:
        images = data.images(data.pick(recipe.batch))
        views = torch.cat([view(images), view(images)])
        seen = teacher(views)
        target = ((seen - center) / 0.04).softmax(-1).chunk(2)
        center.mul_(0.9).add_(0.1 * seen.mean(0))
        guess = (student(views) / 0.1).log_softmax(-1).chunk(2)
        return -((target[0] * guess[1]).sum(-1).mean() + (target[1] * guess[0]).sum(-1).mean()) / 2

    def follow(done: float):
        keep = 1 - 0.01 * (0.5 + 0.5 * math.cos(math.pi * done))
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.mul_(keep).add_(fast.detach(), alpha=1 - keep)

    fit("dino", student.parameters(), recipe, loss_of_batch, follow)
    save_half(teacher.model, folder)
    BitImageProcessor(
        size={"shortest_edge": scenes.SIDE},
        crop_size={"height": scenes.SIDE, "width": scenes.SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(folder)


def view(images: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n 3 h w"]:
    """A random crop of each picture in full size, mirrored or not, tinted anew.

    A crop keeps most of the things, and the new tint hides the background's: views that could be matched by
    their ground alone would teach nothing of what stands on it.
    """
    n = len(images)
    scale = 0.8 + 0.2 * torch.rand(n)
    mirror = torch.randint(2, (n,)) * 2 - 1
    move = (torch.rand(n, 2) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, move
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    crop = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain, lift = 1 + 0.2 * (torch.rand(n, 3, 1, 1) * 2 - 1), 0.3 * (torch.rand(n, 3, 1, 1) * 2 - 1)
    return crop * gain + lift


# ---- BERT: masked words, and a task of its own for the first token (arXiv 1810.04805)


def train_bert(data: Training, recipe: Recipe, folder: Path):
    """Fill in masked words, and foretell from the first token the words of another caption of the same scene.

    The second task stands in for BERT's next sentence: without it nothing asks the first token, which is the
    one recorded, for shapes and colours, since in these captions no other word foretells them.
    """
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer(begin="<cls>", end="<sep>", mask="<mask>")
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        type_vocab_size=1,
        pad_token_id=0,
        **_sizes(),
    )
    model = BertModel(config).train()
    word_head, sentence_head = nn.Linear(WIDTH, len(tokenizer)), nn.Linear(WIDTH, len(tokenizer))

    def loss_of_batch() -> torch.Tensor:
        index = data.pick(recipe.batch)
        ids, another = data.tokens(index, tokenizer), data.tokens(index, tokenizer)
        words = (ids > tokenizer.mask_token_id) & (ids != tokenizer.eos_token_id)
        masked = words & (torch.rand(ids.shape) < 0.15)
        inputs = ids.masked_fill(masked, tokenizer.mask_token_id)
        hidden = model(input_ids=inputs, attention_mask=(ids != 0).long()).last_hidden_state
        said = torch.zeros(recipe.batch, len(tokenizer)).scatter_(1, another, 1.0)
        foretold = F.binary_cross_entropy_with_logits(sentence_head(hidden[:, 0]), said)
        return F.cross_entropy(word_head(hidden[masked]), ids[masked]) + 10 * foretold

    parameters = [*model.parameters(), *word_head.parameters(), *sentence_head.parameters()]
    fit("bert", parameters, recipe, loss_of_batch)
    save_half(model, folder)
    tokenizer.save_pretrained(folder)


def save_half(model, folder: Path):
    """Write half-precision weights whose configuration asks for float32 when they are loaded."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


TRAINERS = {"clip": train_clip, "vit": train_vit, "dino": train_dino, "bert": train_bert}


# ---- what an encoder knows, read from the saved folder as anybody would load it


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


def load_clip(folder: Path):
    """The model in evaluation mode, its picture transform, and its tokenizer."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def embeddings(folder: Path, rows) -> tuple[Float[np.ndarray, "row width"], Float[np.ndarray, "row width"]]:
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
def first_token(name: str, folder: Path, rows) -> Float[np.ndarray, "row width"]:
    """The last block's output at token 0 of each row's picture (or first caption, for bert)."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if name == "clip":
        model, transform, _ = load_clip(folder)
        batch = torch.stack([transform(scenes.picture(row)) for row in rows])
        return last_block(model.visual.transformer.resblocks, lambda: model.visual(batch))[:, 0].numpy()
    model = AutoModel.from_pretrained(folder).eval()
    if name == "bert":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer([scenes.captions(row)[0] for row in rows], padding=True, return_tensors="pt")
    else:
        processor = AutoImageProcessor.from_pretrained(folder)
        batch = processor([scenes.picture(row) for row in rows], return_tensors="pt")
    return model(**batch, output_hidden_states=True).hidden_states[-1][:, 0].numpy()


@torch.no_grad()
def end_of_text(folder: Path, rows) -> Float[np.ndarray, "row width"]:
    """The last block's output at the end of each row's first caption."""
    model, _, tokenizer = load_clip(folder)
    ids = tokenizer([scenes.captions(row)[0] for row in rows])
    hidden = last_block(model.transformer.resblocks, lambda: model.encode_text(ids))
    return hidden[torch.arange(len(ids)), ids.argmax(-1)].numpy()


def last_block(blocks: nn.ModuleList, forward) -> Float[torch.Tensor, "row token width"]:
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


def print_table(table: dict[str, dict[str, float]], seconds: dict[str, float]):
    """A row an encoder, a column a group of factors."""
    groups = list(dict.fromkeys(group for scores in table.values() for group in scores))
    print(f"{'encoder':12}{'seconds':>9}" + "".join(f"{group[:10]:>12}" for group in groups))
    for name, scores in table.items():
        took = seconds.get(name.split()[0])
        cells = [f"{scores[group]:>12.3f}" if group in scores else f"{'':>12}" for group in groups]
        print(f"{name:12}{'' if took is None else f'{took:.0f}':>9}" + "".join(cells))


if __name__ == "__main__":
    main()
