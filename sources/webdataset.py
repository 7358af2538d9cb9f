"""Tar shards of pictures and captions, as img2dataset writes them."""

import glob
import itertools
import json
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from plumbing.errors import UserError
from sources.opened import SOUNDS, Opened, Sample, _name_of, _reason, _say, _texts

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
    samples, damaged, unpaired = [], [], 0
    for shard in shards:
        members, why = _members(shard)
        paired = [pair for pair in (_shard_sample(shard, *entry) for entry in members.items()) if pair]
        unpaired += len(members) - len(paired)
        samples += paired
        damaged += [{"id": shard, "path": shard, "why": why}] if why else []
    if unpaired:
        _say(f"webdataset: {unpaired} keys lack a picture, a sound or a caption and are left out")
    if len({sample.id for sample in samples}) < len(samples) and len(shards) > 1:
        samples = [sample._replace(id=f"{Path(sample.place[0]).stem}/{sample.id}") for sample in samples]
    name = _name_of(Path(shards[0]).absolute().parent)
    return Opened(name, samples, _span_bytes, location, damaged)


def _shards(pattern: str) -> list[str]:
    """The tar files that a pattern names, in its order. Errors: it names none, or one that does not exist.

    What is there under the very name is meant, braces and brackets included.
    """
    if os.path.isfile(pattern):
        return [pattern]
    folder, names = (pattern, "*.tar") if os.path.isdir(pattern) else os.path.split(pattern)
    if not os.path.isdir(folder):
        folder, names = "", pattern
    shards = []
    for name in _expanded(names):
        path = os.path.join(folder, name)
        found = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.join(glob.escape(folder), name)))
        if not found:
            raise UserError(
                f"no shard at {os.path.abspath(path)}; type --data_root 'shards/{{00000..00009}}.tar'"
            )
        shards += found
    return shards


def _expanded(pattern: str) -> list[str]:
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
    heads, tails = (
        [pattern[: brace.start()] + choice for choice in choices],
        _expanded(pattern[brace.end() :]),
    )
    return [head + tail for head, tail in itertools.product(heads, tails)]


class Span(NamedTuple):
    """Where a member of a tar lies: the tar, and the first byte and number of bytes of the content."""

    path: str
    offset: int
    size: int


def _members(shard: str) -> tuple[dict[str, dict[str, Span]], str | None]:
    """A shard's files as {key: {suffix: span}} in its order, and why the rest of it is lost, if it is."""
    members: dict[str, dict[str, Span]] = {}
    end, length = 0, os.path.getsize(shard)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                end = member.offset_data + member.size
                if end > length:
                    break
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(
                    "."
                )  # the format's rule: the key ends at the name's first dot
                span = Span(shard, member.offset_data, member.size)
                files = members.setdefault(os.path.join(folder, stem), {})
                if files.setdefault(f".{suffix.lower()}", span) != span:
                    raise UserError(f"{shard} has {member.name!r} twice; a key may occur once in a shard")
    except tarfile.ReadError as why:
        return members, _cut(members) if members else f"not a whole, uncompressed tar ({_reason(why)})"
    return members, None if _closed(shard, end) else _cut(members)


def _closed(shard: str, end: int) -> bool:
    """Whether the tar has its end mark, a block of zeros, after the content that ends at byte `end`."""
    with open(shard, "rb") as tar:
        tar.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return tar.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _cut(members: dict[str, dict[str, Span]]) -> str:
    return f"the tar is cut short after key {next(reversed(members), None)!r}"


def _shard_sample(shard: str, key: str, files: dict[str, Span]) -> Sample | None:
    suffix = next((suffix for suffix in files if suffix in PICTURES + SOUNDS), None)
    caption = _shard_caption(key, files)
    if suffix is None or caption is None:
        return None
    return Sample(key, f"{Path(shard).name}/{key}{suffix}", caption, files[suffix])


def _shard_caption(key: str, files: dict[str, Span]) -> list[str] | None:
    suffix = next((suffix for suffix in (".txt", ".json") if suffix in files), None)
    if suffix is None:
        return None
    try:
        text = _span_bytes(files[suffix]).decode("utf-8-sig")
        text = json.loads(text).get("caption") if suffix == ".json" else text
    except (ValueError, AttributeError) as why:
        raise UserError(f"{files[suffix].path}: {key}{suffix} holds no caption ({_reason(why)})") from why
    return _texts(text)


def _span_bytes(span: Span) -> bytes:
    with open(span.path, "rb") as tar:
        tar.seek(span.offset)
        content = tar.read(span.size)
    if len(content) < span.size:
        raise OSError(f"{span.path} ends within it")
    return content
