"""Clusters of rows: who belongs together, halves that hang on names, and permutations of whole clusters."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

import samples
from comparing.clusters import (
    both_clusters,
    check,
    clusters,
    folds,
    permutation,
    ranked,
    read_clusters,
    strata_of,
)
from comparing.labels import Told, joined, n_words, named
from comparing.labels import labels as labels_of
from plumbing.errors import UserError


def test_rows_are_joined_by_image_and_lower_cased_caption_transitively():
    images = ["a", "a", "b", "c", "d"]
    captions = ["A cat", "dogs", "a CAT", "rain", ""]
    assert joined(images).tolist() == [0, 0, 1, 2, 3]
    assert clusters(images, captions).ids.tolist() == [0, 0, 0, 1, 2]
    assert clusters(images, captions, own=["", "x", "", "x", ""]).ids.tolist() == [0, 0, 0, 0, 1]
    assert clusters([*images, "e"], [*captions, ""]).n == 4, "empty captions join nothing"


def test_halves_and_folds_hang_on_names_alone():
    rng = np.random.default_rng(0)
    names = [f"{number // 5:03d}.jpg" for number in range(2000)]
    captions = [f"caption {number}" for number in rng.integers(0, 50_000, 2000)]
    found = clusters(names, captions)
    order = rng.permutation(2000)
    moved = clusters([names[row] for row in order], [captions[row] for row in order])
    assert np.array_equal(found.half[order], moved.half)
    assert np.array_equal(folds(found, 4)[order], folds(moved, 4))
    for labels in (found.half, folds(found, 4)):
        assert all(len(np.unique(labels[found.ids == number])) == 1 for number in range(found.n))
        assert np.bincount(labels).min() > 0
    assert 0.4 < clusters([str(row) for row in range(2000)]).half.mean() < 0.6


def test_all_pairs_of_runs_have_the_same_halves():
    names, captions = [str(row) for row in range(400)], [str(row // 2) for row in range(400)]
    of_images, with_text = clusters(names, halves=captions), clusters(names, captions)
    assert (of_images.n, with_text.n) == (400, 200)
    assert np.array_equal(of_images.half, with_text.half)


def test_a_permutation_moves_whole_clusters_among_those_of_their_size():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 4, 300)
    names = np.repeat([f"n{number}" for number in range(300)], sizes)[rng.permutation(sizes.sum())]
    found = clusters(list(names))
    partner = permutation(found, 0)
    assert np.array_equal(np.sort(partner), np.arange(len(names)))
    assert not (found.ids == found.ids[partner]).any()
    for number in range(found.n):
        moved = np.unique(found.ids[partner[found.ids == number]])
        assert len(moved) == 1
        assert found.sizes[moved[0]] == found.sizes[number]
    assert not np.array_equal(partner, permutation(found, 1))
    assert np.array_equal(partner, permutation(found, 0))


def test_a_permutation_and_the_halves_stay_as_they_were_first_recorded():
    found = clusters(list("aabccdefgghijk"))
    assert found.half.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert permutation(found, 0).tolist() == [8, 9, 11, 0, 1, 2, 13, 10, 3, 4, 6, 12, 7, 5]
    strata = np.array([9, 9, 10, 9, 10, 10, 9, 10, 9, 9, 10, 9, 10, 10])  # "10" stands before "9"
    expected = [8, 9, 12, 3, 4, 2, 11, 10, 0, 1, 5, 6, 13, 7]
    for values in (strata, samples.Texts.of(map(str, strata))):
        assert permutation(found, 0, ranked(values)).tolist() == expected


def test_the_only_cluster_of_its_size_stays():
    assert permutation(clusters(["a", "a", "b", "c"]), 0).tolist() == [0, 1, 3, 2]


def test_strata_keep_their_rows():
    found = clusters([str(row // 2) for row in range(400)])
    strata = [str(row // 4 % 3) for row in range(400)]
    partner = permutation(found, 3, ranked(samples.Texts.of(strata)))
    assert [strata[row] for row in partner] == strata
    assert not np.array_equal(partner, permutation(found, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tx\nb\ty\n", "has no line for c"),
        ("a\tx\nb\ty\nc\tz\nd\tz\n", "unknown rows: d"),
        ("a\n", "line 1"),
        ("a\tx\nb\ty\nc\tz\na\tz\n", "line 4: a has a line already"),
    ],
)
def test_a_cluster_file_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "groups.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_clusters(tmp_path / "groups.tsv", ["a", "b", "c"])


def read_back(tmp_path, captions, **columns):
    """Samples with these captions, and columns of one value, as a run would have them."""
    rows = [{"id": str(n), "image": "", "caption": text, **columns} for n, text in enumerate(captions)]
    samples.write(tmp_path, rows)
    return samples.read(tmp_path, len(rows))


def test_bad_choices_are_refused(tmp_path):
    found = read_back(tmp_path, ["a b", "a", "b"], lens="wide")
    with pytest.raises(UserError, match="one value"):
        strata_of("lens", found)
    with pytest.raises(UserError, match="caption_words, caption, id, image, lens"):
        strata_of("camera", found)
    with pytest.raises(UserError, match="another value in each row"):
        strata_of("id", found)
    few = clusters(["a", "b", "b"])
    with pytest.raises(UserError, match="takes 50 of the 2 clusters of samples: leave it out"):
        folds(few, 2)
    with pytest.raises(UserError, match="2 clusters of 3 samples"):
        check(few)


def test_captions_are_lowered_trimmed_and_counted_as_python_does(tmp_path):
    captions = ["A  Green\u2003tree\n", "", " a Caf\xe9", "\tA CAF\xc9\u3000", "a", "\xa0 "]
    captions += [f"{chr(code)}a{chr(code)}b{chr(code)}" for code in range(0x20) if chr(code) not in "\r\n"]
    found = read_back(tmp_path, captions)
    assert list(n_words(found.captions)) == [len(text.split()) for text in captions]
    lowered = [text.strip().lower() for text in captions]
    assert clusters(found.ids, found.captions).ids.tolist() == joined(lowered).tolist()
    assert list(named(found)) == list(found.ids), "a row without an image is called by its id"


WORDS = ["a", "A", "caf\xe9", "CAF\xc9", "\xfc\xdf", "\u4e2d", "a b", "\\", 'say "a"\n']
BARE = ["", " ", "x" * 200, "X" * 200, "\u3000"]


def by_texts(
    columns: list[list[str]], names: list[str], wider: list[list[str]]
) -> tuple[list[int], list[int]]:
    """The number of each row's cluster by `columns`, and the half by `wider` too, in plain Python from the texts."""

    def groups(shared: list[list[str]]) -> list[int]:
        group = list(range(len(names)))
        for one in shared:
            held: dict[str, int] = {}
            for row, text in enumerate(one):
                other = group[held.setdefault(text, row)] if text else group[row]
                group = [other if number == group[row] else number for number in group]
        order = list(dict.fromkeys(group))
        return [order.index(number) for number in group]

    keys = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in names
    ]
    wide = groups(columns + wider)
    lowest = [min(key for key, other in zip(keys, wide, strict=True) if other == number) for number in wide]
    return groups(columns), [key & 1 for key in lowest]


def test_clusters_by_hashes_in_pieces_are_those_by_texts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(samples, "PIECE_BYTES", 300)
    rng = np.random.default_rng(3)

    def texts(n: int) -> list[str]:
        words = (f"{word}{rng.integers(n)}" for word in rng.choice(WORDS, 400))
        edged = (
            before + word + after
            for word, before, after in zip(words, *rng.choice(["", "\t", "\u3000"], (2, 400)), strict=True)
        )
        return [str(rng.choice(BARE)) if row % 20 == 0 else text for row, text in enumerate(edged)]

    captions, own = [texts(200), texts(300)], [str(n) if n < 5 else "" for n in rng.integers(0, 50, 400)]
    images, told = [text * bool(row % 4) for row, text in enumerate(texts(400))], []
    for number, said in enumerate(captions):
        (tmp_path / str(number)).mkdir()
        rows = zip(map(str, range(400)), images, said, strict=True)
        samples.write(tmp_path / str(number), (dict(zip(samples.COLUMNS, row, strict=True)) for row in rows))
        told.append(Told.of(samples.blocks(tmp_path / str(number), 400), 400))
        assert told[-1].n_words.tolist() == [len(text.split()) for text in said]
    names = [image or str(row) for row, image in enumerate(images)]
    lowered = [[text.strip().lower() for text in said] for said in captions]
    few, many = both_clusters(told[0].names, [one.captions for one in told], own)
    # Rows are joined by the captions of any number: as if each row stood there twice.
    twice = [names * 2, own * 2, [str(row) for row in range(400)] * 2, list(itertools.chain(*lowered))]
    assert few.ids.tolist() == by_texts([names, own], names, [])[0]
    ids, half = by_texts(twice, names * 2, [])
    assert 400 > few.n > many.n == max(ids) + 1 >= 50, "neither too few for halves, nor all of them joined"
    assert (many.ids.tolist(), many.half.tolist()) == (ids[:400], half[:400])
    assert few.half.tolist() == half[:400]


def test_a_line_longer_than_a_piece_and_blank_lines_are_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(samples, "PIECE_BYTES", 64)
    found = read_back(tmp_path, ["a", "b" * 500, "c", "d" * 65])
    assert list(found.captions) == ["a", "b" * 500, "c", "d" * 65]
    file = tmp_path / samples.NAME
    file.write_text(file.read_text().replace("\n", "\n" * 70))
    assert list(samples.read(tmp_path, 4).captions) == list(found.captions)
    for n_samples in (3, 5):
        with pytest.raises(UserError, match="missing or damaged"):
            list(samples.blocks(tmp_path, n_samples))
    file.write_text(file.read_text()[:-90])
    with pytest.raises(UserError, match="missing or damaged"):
        list(samples.blocks(tmp_path, 4))


def test_the_first_number_of_a_label_is_the_digest_of_hashlib():
    rng = np.random.default_rng(0)
    lengths = [*range(3 * 128 + 2), *rng.permutation(65), 0, 5 * 128, 0]
    texts = ["".join(map(chr, rng.integers(1, 0x7FF, length))) for length in lengths]
    found = labels_of(texts)
    expected = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    assert [number.tobytes() for number in found[0]] == expected
    assert len(set(map(tuple, found.T.tolist()))) == len(set(texts))
    assert labels_of([]).shape == (2, 0)
