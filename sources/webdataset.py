"""Tar shards of pictures and captions, as img2dataset writes them."""

import glob
import itertools
import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from plumbing.errors import UserError
from sources.opened import SOUNDS, Lost, Opened, Sample, Span, name_of, reason, spelled, texts
from sources.tars import Member, members

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")


def open_webdataset(location: str | None) -> Opened:
    """Tar shards as img2dataset writes them: KEY.jpg, KEY.txt and KEY.json side by side.

    `data_root` is one tar, a folder of them, or a pattern: 'shards/{00000..00009}.tar', '{a,b}.tar', '*.tar'.
    Rows: shards in pattern order (folders and '*' by name), keys by first appearance. The caption is KEY.txt,
    else "caption" of KEY.json. Ids are the keys; where shards repeat keys, shard/key.
    """
    if location is None:
        raise UserError(
            "data set 'webdataset' needs --data_root 'shards/{00000..00009}.tar' or a folder of tars"
        )
    shards = _shards(location)
    name = name_of(Path(shards[0]).absolute().parent)
    apart = _with_shard if len(shards) > 1 else None
    return Opened(name, _rows(shards), span_bytes, location, files=shards, apart=apart)


def _rows(shards: list[str]) -> Iterator[Sample | Lost | str]:
    unpaired = 0
    for shard in shards:
        unpaired += yield from _read_shard(shard)
    if unpaired:
        yield f"webdataset: {unpaired} keys lack a picture, a sound or a caption and are left out"


def _with_shard(sample: Sample) -> Sample:
    return sample._replace(id=spelled(f"{Path(str(sample.path)).stem}/{sample.id}"))


def _shards(pattern: str) -> list[str]:
    """The tar files that a pattern names, in its order. Errors: it names none, or one that does not exist.

    A file or folder of the very name comes first, whatever braces and brackets the name holds.
    """
    if os.path.isfile(pattern):
        return [pattern]
    folder, names = (pattern, "*.tar") if os.path.isdir(pattern) else os.path.split(pattern)
    if not os.path.isdir(folder):
        folder, names = "", pattern
    shards = []
    for name in expanded(names):
        path = os.path.join(folder, name)
        found = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.join(glob.escape(folder), name)))
        if not found:
            raise UserError(
                f"no shard at {os.path.abspath(path)}; type --data_root 'shards/{{00000..00009}}.tar'"
            )
        shards += found
    return shards


def expanded(pattern: str) -> list[str]:
    """A pattern's braces as the shell expands them: {08..11} keeps leading zeros, {11..8} counts down, {a,b} lists."""
    brace = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if not brace:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if span:
        first, last = map(int, span.groups())
        step = 1 if first <= last else -1
        width = max(map(len, span.groups())) if any(re.match("0.", end) for end in span.groups()) else 0
        choices = [str(number).zfill(width) for number in range(first, last + step, step)]
    else:
        choices = brace[1].split(",")
    head, tails = pattern[: brace.start()], expanded(pattern[brace.end() :])
    return [head + choice + tail for choice, tail in itertools.product(choices, tails)]


def _read_shard(shard: str) -> Generator[Sample | Lost, None, int]:
    """Yield a shard's rows, and what is lost of it; returns the number of its unpaired keys."""
    found, why = members(Path(shard))
    unpaired = 0
    with open(shard, "rb") as tar:
        for key, spans in _by_key(shard, found).items():
            name = f"{os.path.basename(shard)}/{key}"
            file = next((suffix for suffix in spans if suffix in PICTURES + SOUNDS), None)
            text = next((suffix for suffix in (".txt", ".json") if suffix in spans), None)
            captions = None
            if file and text:
                try:
                    captions = _captions(_content(tar, spans[text]), text)
                except (ValueError, AttributeError) as no_caption:
                    yield Lost(name + text, name + text, f"holds no caption ({reason(no_caption)})")
                    continue
            if file and captions is not None:
                yield Sample(key, name + file, captions, spans[file])
            else:
                unpaired += 1
    if why:
        yield Lost(shard, shard, why)
    return unpaired


def _by_key(shard: str, found: list[Member]) -> dict[str, dict[str, Span]]:
    """A shard's files as {key: {suffix: span}} in its order."""
    keys: dict[str, dict[str, Span]] = {}
    for member in found:
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")  # by the format's rule the first dot ends the key
        span = Span(shard, member.offset, member.size)
        files = keys.setdefault(folder + slash + stem, {})
        if files.setdefault(f".{suffix.lower()}", span) != span:
            raise UserError(f"{shard} has {member.name!r} twice; a key may occur once in a shard")
    return keys


def _captions(content: bytes, suffix: str) -> list[str] | None:
    """The caption of a .txt, or of a .json under "caption"; None where there is none."""
    text = content.decode("utf-8-sig")
    return texts(json.loads(text).get("caption") if suffix == ".json" else text)


def span_bytes(span: Span) -> bytes:
    """The content of a member of a tar."""
    with open(span.path, "rb") as tar:
        return _content(tar, span)


def _content(tar: BinaryIO, span: Span) -> bytes:
    tar.seek(span.offset)
    content = tar.read(span.size)
    if len(content) < span.size:
        raise OSError(f"{span.path} ends within it")
    return content
