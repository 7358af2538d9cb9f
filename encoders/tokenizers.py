"""Tokenizers of transformers: load and check them, turn captions into token ids, pad them."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from encoders.hub import refuse_pointers
from encoders.inputs import Inputs, as_text
from plumbing.errors import UserError, first_line

END_OF_TEXT = {  # model types whose text tower pools the end-of-text token
    f"{kind}_text_model"
    for kind in ("aimv2", "clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "xclip")
}


def load(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Errors: OSError where it has no vocabulary (without its files transformers silently builds a tokenizer of
    special tokens alone, which reads all captions alike); ValueError where it cannot read a caption.
    """
    refuse_pointers(name, ("*.json", "*.txt"))
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    try:
        tokenizer("a 猫 [qzx]")
    except Exception as error:  # tokenizers raises nothing more special where a vocabulary lacks <unk>
        raise ValueError(f"its tokenizer reads no caption: {first_line(error)}") from error
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:
        raise FileNotFoundError(f"the tokenizer of {name} has no vocabulary")
    return tokenizer


def check_vocabulary(name: str, tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    """UserError where a token's id is beyond the model's embeddings; special tokens count only where used."""
    try:
        n_embedded = getattr(tower.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE hashes characters and has no table of embeddings
        n_embedded = None
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    highest = max(words | set(tokenizer("a").input_ids))
    if n_embedded and highest >= n_embedded:
        raise UserError(
            f"the tokenizer of {name!r} has a word of number {highest}, but the model embeds {n_embedded}: "
            "they are not of one checkpoint"
        )


def unknown_share(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> float:
    """The share of the captions' tokens that are <unk>, 0 to 1; a caption of special tokens alone counts as one."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words = [[i for i in ids if i not in special] for ids in tokenizer(captions).input_ids]
    unknown = sum(ids.count(tokenizer.unk_token_id) if ids else 1 for ids in words)
    return unknown / max(1, sum(len(ids) or 1 for ids in words))


def context(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest caption in tokens. RoBERTa's positions start at padding_idx + 1, which leaves fewer."""
    positions = getattr(tower.config, "max_position_embeddings", None) or 0
    positions = positions if positions > 0 else 512  # T5 and XLNet have relative positions
    tables = [module for path, module in tower.named_modules() if path.endswith("position_embeddings")]
    first = max([getattr(table, "padding_idx", None) or -1 for table in tables], default=-1) + 1
    return min(tokenizer.model_max_length, positions - first)


def text_token(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that stands for a caption: "end_of_text", "last" (causal models), "cls", or "mean" (no such token)."""
    kind = config.model_type
    if kind in END_OF_TEXT:
        return "end_of_text"
    if config.is_encoder_decoder:
        return "mean"
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked:
        return "last"
    ids = tokenizer("a").input_ids
    if tokenizer.cls_token_id in ids:
        return "cls" if ids[0] == tokenizer.cls_token_id else "last"  # XLNet puts its CLS at the end
    return "mean"


def token_ids(tokenizer: PreTrainedTokenizerBase, longest: int, caption: str) -> Inputs:
    """One caption as token ids [token], at most `longest`. An empty caption becomes the token that ends a text."""
    caption = as_text(tokenizer.all_special_tokens, caption)
    ids = tokenizer(caption, truncation=True, max_length=longest).input_ids
    return {"input_ids": torch.tensor(ids or [tokenizer.eos_token_id or tokenizer.bos_token_id or 0])}


def pad(padding: int, items: list[Inputs]) -> Inputs:
    """Token ids padded on the right to the longest, [caption, token], with their attention mask."""
    ids = [item["input_ids"] for item in items]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=padding), "attention_mask": mask}


def fixed_ids(tokenizer: PreTrainedTokenizerBase, length: int, caption: str) -> Inputs:
    """One caption as exactly `length` token ids, padded on the right.

    Lower-cased here: SigLIP was trained so, but the tokenizer of its fixed-size checkpoints keeps capitals.
    """
    options = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    caption = as_text(tokenizer.all_special_tokens, caption.lower())
    return {"input_ids": tokenizer([caption], return_tensors="pt", **options).input_ids[0]}
