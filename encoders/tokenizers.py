"""Tokenizers of transformers: captions to token ids, and whether a tokenizer knows their words."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from encoders.hub import refuse_pointers
from encoders.inputs import Inputs, as_text
from plumbing.errors import UserError, first_line

END_OF_TEXT = {  # the types of text towers that sum a caption up in the token that ends it
    f"{kind}_text_model"
    for kind in ("aimv2", "clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "xclip")
}


def load(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers; OSError where it has no words.

    Where the files of the vocabulary are missing, transformers makes one of the special tokens alone, which
    reads all captions alike.
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
    """Refuse a tokenizer with words that the model has no embedding of; special tokens are read only where used."""
    try:
        n_embedded = getattr(tower.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE reads characters by their hashes
        n_embedded = None
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    highest = max(words | set(tokenizer("a").input_ids))
    if n_embedded and highest >= n_embedded:
        raise UserError(
            f"the tokenizer of {name!r} has a word of number {highest}, but the model embeds {n_embedded}: "
            "they are not of one checkpoint"
        )


def unknown_share(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> float:
    """Which share of the captions' tokens is the unknown one; a caption of no token but special ones is unknown."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words = [[i for i in ids if i not in special] for ids in tokenizer(captions).input_ids]
    unknown = sum(ids.count(tokenizer.unk_token_id) if ids else 1 for ids in words)
    return unknown / max(1, sum(len(ids) or 1 for ids in words))


def context(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest caption in tokens: RoBERTa and its kin count positions from behind the padding's id."""
    positions = getattr(tower.config, "max_position_embeddings", None) or 0
    positions = positions if positions > 0 else 512  # T5 and XLNet have relative positions
    tables = [module for path, module in tower.named_modules() if path.endswith("position_embeddings")]
    first = max([getattr(table, "padding_idx", None) or -1 for table in tables], default=-1) + 1
    return min(tokenizer.model_max_length, positions - first)


def text_token(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Which token a text encoder sums a caption up in: the last of a causal model, CLS, or none."""
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
        return "cls" if ids[0] == tokenizer.cls_token_id else "last"  # XLNet's is behind the words
    return "mean"


def token_ids(tokenizer: PreTrainedTokenizerBase, longest: int, caption: str) -> Inputs:
    """One caption as token ids, cut at `longest`; an empty one is the token that ends or begins a text."""
    caption = as_text(tokenizer.all_special_tokens, caption)
    ids = tokenizer(caption, truncation=True, max_length=longest).input_ids
    return {"input_ids": torch.tensor(ids or [tokenizer.eos_token_id or tokenizer.bos_token_id or 0])}


def pad(padding: int, items: list[Inputs]) -> Inputs:
    """Captions to the length of the longest, padded on the right, with their attention mask."""
    ids = [item["input_ids"] for item in items]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=padding), "attention_mask": mask}


def fixed_ids(tokenizer: PreTrainedTokenizerBase, length: int, caption: str) -> Inputs:
    """One caption as exactly `length` token ids, padded on the right.

    SigLIP was trained on lower case, which the tokenizer that its fixed-size checkpoints name does not make.
    """
    options = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    caption = as_text(tokenizer.all_special_tokens, caption.lower())
    return {"input_ids": tokenizer([caption], return_tensors="pt", **options).input_ids[0]}
