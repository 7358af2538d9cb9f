"""Tar shards of pictures and captions, as img2dataset writes them."""

import glob
import itertools
import json
import os
import re
import tarfile
from pathlib import Path

from plumbing.errors import UserError
from sources.opened import SOUNDS, Opened, Sample, Span, name_of, reason, say, texts

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
        rows, lost, alone = _read_shard(shard)
        samples, damaged, unpaired = samples + rows, damaged + lost, unpaired + alone
    if unpaired:
        say(f"webdataset: {unpaired} keys lack a picture, a sound or a caption and are left out")
    if len({sample.id for sample in samples}) < len(samples) and len(shards) > 1:
        samples = [sample._replace(id=f"{Path(sample.path).stem}/{sample.id}") for sample in samples]
    name = name_of(Path(shards[0]).absolute().parent)
    return Opened(name, samples, span_bytes, location, damaged)


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


def _read_shard(shard: str) -> tuple[list[Sample], list[dict[str, str]], int]:
    """A shard's rows, the {"id", "path", "why"} of what in it is damaged, and the number of its unpaired keys."""
    members, why = _members(shard)
    samples, damaged = [], []
    for key, spans in members.items():
        name = f"{Path(shard).name}/{key}"
        file = next((suffix for suffix in spans if suffix in PICTURES + SOUNDS), None)
        text = next((suffix for suffix in (".txt", ".json") if suffix in spans), None)
        if file is None or text is None:
            continue
        try:
            captions = _captions(span_bytes(spans[text]), text)
        except (ValueError, AttributeError) as no_caption:
            lost = f"holds no caption ({reason(no_caption)})"
            damaged.append({"id": name + text, "path": name + text, "why": lost})
            continue
        if captions is not None:
            samples.append(Sample(key, name + file, captions, spans[file]))
    unpaired = len(members) - len(samples) - len(damaged)
    return samples, damaged + ([{"id": shard, "path": shard, "why": why}] if why else []), unpaired


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
                stem, _, suffix = name.partition(".")  # by the format's rule the first dot ends the key
                span = Span(shard, member.offset_data, member.size)
                files = members.setdefault(os.path.join(folder, stem), {})
                if files.setdefault(f".{suffix.lower()}", span) != span:
                    raise UserError(f"{shard} has {member.name!r} twice; a key may occur once in a shard")
    except tarfile.ReadError as why:
        return members, _cut(members) if members else f"not a whole, uncompressed tar ({reason(why)})"
    return members, None if _closed(shard, end) else _cut(members)


def _closed(shard: str, end: int) -> bool:
    """Whether the tar has its end mark, a block of zeros, after the content that ends at byte `end`."""
    with open(shard, "rb") as tar:
        tar.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return tar.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _cut(members: dict[str, dict[str, Span]]) -> str:
    return f"the tar is cut short after key {next(reversed(members), None)!r}"


def _captions(content: bytes, suffix: str) -> list[str] | None:
    """The caption of a .txt, or of a .json under "caption"; None where there is none."""
    text = content.decode("utf-8-sig")
    return texts(json.loads(text).get("caption") if suffix == ".json" else text)


def span_bytes(span: Span) -> bytes:
    """The content of a member of a tar."""
    with open(span.path, "rb") as tar:
        tar.seek(span.offset)
        content = tar.read(span.size)
    if len(content) < span.size:
        raise OSError(f"{span.path} ends within it")
    return content
