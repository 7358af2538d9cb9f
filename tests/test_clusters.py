"""Clusters of rows: who belongs together, halves that hang on names, and permutations of whole clusters."""

import numpy as np
import pytest

import samples
from comparing.clusters import check, clusters, folds, joined, named, permutation, read_clusters, strata_of
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


def test_the_only_cluster_of_its_size_stays():
    assert permutation(clusters(["a", "a", "b", "c"]), 0).tolist() == [0, 1, 3, 2]


def test_strata_keep_their_rows():
    found = clusters([str(row // 2) for row in range(400)])
    strata = [str(row // 4 % 3) for row in range(400)]
    partner = permutation(found, 3, strata)
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
    assert list(strata_of("caption_words", found)) == [len(text.split()) for text in captions]
    lowered = [text.strip().lower() for text in captions]
    assert clusters(found.ids, found.captions).ids.tolist() == joined(lowered).tolist()
    assert list(named(found)) == list(found.ids), "a row without an image is called by its id"
