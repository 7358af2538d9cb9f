"""BLAKE2b of many texts at once, against hashlib."""

import hashlib

import numpy as np
import pytest

from plumbing.digests import BLOCK, LANES, digests


@pytest.mark.parametrize("size", [8, 16])
def test_many_texts_are_hashed_as_hashlib_hashes_each(size):
    rng = np.random.default_rng(0)
    lengths = [*range(3 * BLOCK + 2), *rng.permutation(2 * LANES + 1), 0, 5 * BLOCK, 0]
    texts = [rng.integers(0, 256, length, np.uint8).tobytes() for length in lengths]
    edges = np.cumsum([0, *lengths])
    edges.flags.writeable = False  # as pyarrow gives them
    found = digests(np.frombuffer(b"".join(texts), np.uint8), edges, size)
    expected = [hashlib.blake2b(text, digest_size=size).digest() for text in texts]
    assert [number.tobytes()[:size] for number in found.T.copy()] == expected
