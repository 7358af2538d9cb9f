"""Try every architecture of transformers and timm that can be built tiny, on random weights: each has to be right,
or to end in one line.

    uv run benchmarks/sweep_encoders.py                 # all: about half an hour on one core
    uv run benchmarks/sweep_encoders.py bert timm:pit   # those whose name contains one of these words

Each is saved to a folder (timm's are drawn by name), loaded by `wrappedmodels.load`, put through the self-test, and
recorded alone and beside another item. Each has a process and two minutes of its own, and one thread.
"""

import collections
import json
import multiprocessing
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.errors import UserError

SECONDS = 120
RIGHT, REFUSED, UNBUILT, WRONG = "right", "refused", "cannot be built tiny", "WRONG"
LARGEST = 60_000_000  # parameters
WIDTHS = [
    "hidden_size",
    "d_model",
    "dim",
    "n_embd",
    "embed_dim",
    "emb_dim",
    "embedding_size",
    "width",
    "vision_width",
    "d_embed",
    "decoder_hidden_size",
    "mask_feature_size",
    "feature_size",
    "fpn_feature_size",
    "hidden_dim",
    "encoder_hidden_dim",
    "projection_dim",
]
DEPTHS = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "depth",
    "num_decoder_layers",
    "num_block_records",
    "decoder_num_hidden_layers",
    "num_blocks",
    "layers",
]
HEADS = [
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "heads",
    "num_key_value_heads",
    "decoder_num_attention_heads",
]
TWICE = [
    "intermediate_size",
    "d_ff",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "d_inner",
    "inner_dim",
    "mlp_dim",
    "n_inner",
    "decoder_intermediate_size",
    "dim_feedforward",
    "moe_intermediate_size",
]
SMALL = (
    dict.fromkeys(WIDTHS, 32)
    | dict.fromkeys(DEPTHS, 2)
    | dict.fromkeys(HEADS, 2)
    | dict.fromkeys(TWICE, 64)
    | dict(vocab_size=40, head_dim=16, d_kv=16, d_head=16, kv_channels=16, image_size=32, patch_size=8)
    | dict(max_position_embeddings=64, n_positions=64, num_experts=2, num_local_experts=2, n_routed_experts=2)
    | dict(
        attention_head_size=16, num_labels=2, use_pretrained_backbone=False, moe_num_experts=2, rotary_dim=8
    )
    | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, num_queries=5, ctx_len=64, max_seq_len=64)
)


def shrink(config: Any):
    """Set a configuration's sizes, and those of the configurations in it, to tiny ones."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            shrink(value)
        elif name.endswith(("layer_types", "layers_block_type")) and value:
            setattr(config, name, value[:2])
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            setattr(config, name, shrunk_list(name, value))
        elif name in SMALL and (type(value) is int or (value is None and name in HEADS)):
            setattr(config, name, SMALL[name])


def shrunk_list(name: str, values: list[int]) -> list[int]:
    """One small number a stage: of blocks, of heads, of widths; others as they are."""
    if name in ("depths", "num_blocks", "layers", "num_layers"):
        return [1] * (len(values) - 1) + [2]
    if "head" in name:
        return [2] * len(values)
    if any(word in name for word in ("hidden_size", "embed_dim", "channels", "dims", "out_features")):
        return [16 * 2 ** min(stage, 2) for stage in range(len(values))]
    return values


def configurations(kind: str):
    """A family's configuration, shrunk; and as it is, where that cannot be built."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    shrink(config)
    yield type(config).from_dict(config.to_dict())
    yield config
    yield AutoConfig.for_model(kind)


def tiny_model(kind: str) -> Any:
    """A random model of a family; raises what the last attempt raised."""
    import offline_hub
    import torch
    from transformers import AutoModel

    for attempt, config in enumerate(configurations(kind)):
        try:
            with torch.device("meta"):
                size = sum(weights.numel() for weights in AutoModel.from_config(config).parameters())
            if size > LARGEST:
                raise MemoryError(f"{size / 1e6:.0f} M parameters")
            config.validate()
            return offline_hub.seeded(lambda config=config: AutoModel.from_config(config))
        except Exception:
            if attempt == 2:
                raise


def save_processor(kind: str, folder: Path):
    """The family's own image processor where it makes more than one square of a picture, else ViT's."""
    import offline_hub
    from PIL import Image
    from transformers import AutoImageProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}
    names = list(names.values()) if isinstance(names, dict) else list(names)
    for name in [*[name for name in names if name], "ViTImageProcessor"]:
        try:
            offline_hub.picture_processor(folder, name)
            made = AutoImageProcessor.from_pretrained(folder)(
                images=Image.new("RGB", (40, 30)), return_tensors="pt"
            )
            if made["pixel_values"].ndim != 4 or name == "ViTImageProcessor":
                return
        except Exception:
            continue


def save_tokenizer(kind: str, folder: Path):
    """A tokenizer of whole words, with a CLS in front where the family has a masked language model."""
    import offline_hub
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    specials = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    roles = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    roles |= dict(cls_token="<s>", sep_token="</s>") if kind in masked else {}
    tokenizer = offline_hub.word_level(
        specials, "<s>" if kind in masked else None, "</s>", model_max_length=64, **roles
    )
    tokenizer.save_pretrained(folder)


def modalities(model: Any) -> list[str]:
    """The rows that a model is for: by what it reads, and by the towers that it has."""
    config = model.config
    towers = [
        row
        for part, row in (("vision_config", "HFVision"), ("text_config", "HFText"))
        if getattr(config, part, None)
    ]
    if towers and getattr(config, "text_config", None):
        return towers if towers == ["HFVision", "HFText"] else ["HFText"]
    said = model.main_input_name if isinstance(model.main_input_name, list) else [model.main_input_name]
    reads = {"pixel_values": "HFVision", "input_ids": "HFText"}
    return [reads[name] for name in said[:1] if name in reads]  # OneFormer lists a picture and its task


def of_transformers(kind: str, say: Any):
    """Try one family by every row that it could be loaded by."""
    import torch

    try:
        model = tiny_model(kind)
    except Exception as error:
        return say("", UNBUILT, f"{type(error).__name__}: {error}")
    rows = modalities(model)
    if not rows:
        return say("", UNBUILT, f"reads {model.main_input_name}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.to(torch.float32).save_pretrained(folder)
            save_processor(kind, Path(folder))
            save_tokenizer(kind, Path(folder))
        except Exception as error:
            return say("", UNBUILT, f"{type(error).__name__}: {error}")
        for row in rows:
            say(row, *outcome(row, folder, {}))
    return None


def outcome(row: str, checkpoint: str, options: dict) -> tuple[str, str]:
    """What became of one encoder, and in which words."""
    import wrappedmodels
    from encoders import inputs, self_test

    try:
        encoder = wrappedmodels.load(row, checkpoint, **options)
        short, long = (inputs.sample_item(encoder.modality, short) for short in (True, False))
        if encoder.modality == "text":
            short, long = "a red dog", "the small blue cat sits on a circle in the red square over a dog"
        self_test.self_test(encoder, [short, long], [encoder.n_layers - 1])
        fault = independent(encoder, short, long)
        text = f"{encoder.n_layers} blocks at {encoder.path}, {encoder.token}"
        return (WRONG, fault) if fault else (RIGHT, text)
    except UserError as error:
        text = str(error)
        return (WRONG if "\n" in text else REFUSED), text
    except Exception:
        return WRONG, traceback.format_exc()


def independent(encoder: Any, short: Any, long: Any) -> str:
    """What is wrong with the recorded tokens of the first and the last layer, in each place of three batches."""
    import torch

    from encoders import self_test

    for layer in {0, encoder.n_layers - 1}:
        vectors = []
        for place, items in ((0, [short]), (0, [short, long]), (1, [long, short]), (2, [long, long, short])):
            found = encoder.activations(
                encoder.collate([encoder.preprocess(item) for item in items]), [layer]
            )
            vectors.append(self_test.recorded(found, layer)[place])
        moved = max(float((vector - vectors[0]).norm() / vectors[0].norm()) for vector in vectors)
        if moved > 1e-4 or not torch.isfinite(vectors[0]).all():
            return f"layer {layer}: the recorded token moves by {moved:.1e} with its batch mates"
    return ""


def of_timm(name: str, say: Any):
    """Try one model of timm by its name."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            size = sum(weights.numel() for weights in timm.create_model(name).parameters())
    except Exception:
        size = 0  # it may need real tensors to be built
    if size > LARGEST:
        return say("", UNBUILT, f"{size / 1e6:.0f} M parameters")
    return say("TimmVision", *outcome("TimmVision", name, {"random_weights": 0}))


def timm_names() -> list[str]:
    """The smallest-sounding model of each family: of a file of timm, by the first letters of its name."""
    import timm

    words = (
        "test_",
        "atto",
        "femto",
        "pico",
        "nano",
        "xxs",
        "xxtiny",
        "_xs",
        "tiny",
        "mini",
        "_s",
        "small",
        "18",
    )
    families = collections.defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            families[module, re.match("[a-z]*", name.removeprefix("test_"))[0]].append(name)

    def size(name):
        return next((rank for rank, word in enumerate(words) if word in name), len(words)), len(name)

    return [min(names, key=size) for names in families.values()]


def child(architecture: str, pipe: Any):
    """In a process of its own: try one architecture, and send every outcome."""
    import torch

    torch.set_num_threads(1)
    library, _, name = architecture.partition(":")
    (of_timm if library == "timm" else of_transformers)(name, lambda *line: pipe.send((architecture, *line)))
    pipe.close()


def outcomes(architecture: str) -> list[tuple]:
    """The lines of one architecture, or that it took too long or died."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(architecture, there))
    process.start()
    there.close()
    lines = []
    try:
        while here.poll(SECONDS):
            lines.append(here.recv())
    except EOFError:
        process.join()
        if lines:
            return lines
        return [(architecture, "", WRONG, f"left with exit code {process.exitcode}")]
    process.kill()
    return [*lines, (architecture, "", UNBUILT, f"took more than {SECONDS} seconds")]


def main(words: list[str]) -> list[tuple]:
    """Try all, or those that contain a word; print a line each, and the counts; returns the lines."""
    import logging

    import open_clip  # noqa: F401
    import timm  # noqa: F401 -- once, for all children
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    import wrappedmodels  # noqa: F401

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    kinds = sorted(MODEL_MAPPING_NAMES, key=lambda kind: (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, kind))
    names = [f"transformers:{kind}" for kind in kinds] + [f"timm:{name}" for name in timm_names()]
    lines = []
    for name in [name for name in names if not words or any(word in name for word in words)]:
        started = time.monotonic()
        for line in outcomes(name):
            lines.append(line)
            text = json.dumps(line) if line[2] == WRONG else "  ".join(line).replace("\n", " ")[:400]
            print(text, f"({time.monotonic() - started:.0f} s)", flush=True)
    for what, count in collections.Counter(line[2] for line in lines).items():
        print(f"{what}: {count}", file=sys.stderr)
    return lines


if __name__ == "__main__":
    sys.exit(any(line[2] == WRONG for line in main(sys.argv[1:])))
