"""How well names tell the demo's planted factors (after `uv run demo.py`), and what naming a large layer takes."""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import features
from plumbing.commandline import Parser, script
from showing import names, words
from toyworld import scenes, telling, things

ROWS, WIDTH, ACTIVE = 118_287, 8192, 32  # COCO's pictures, and a layer of an SAE over them
VOCABULARY, CAPTION = 12_000, 11  # words in all, and a caption
AT_LEAST, FOLLOWS = 20, 0.5  # samples that a feature is active on, and its r with the factor that it follows
HIDDEN = scenes.IMAGE_ONLY


@script
def main(argv=None):
    """Print, for each run of the demo, how many features are named by a synonym of the factor that they follow."""
    parser = Parser(__doc__, __file__)
    parser.parse_args(argv)
    for name in [name for name in features.run_names() if name.startswith("demo-")]:
        print(f"{name}: {planted(features.open_run(name))}")
    random = np.random.default_rng(0)
    odds = 1 / np.arange(1, VOCABULARY + 1)
    drawn = random.choice(VOCABULARY, (ROWS, CAPTION), p=odds / odds.sum())
    captions = [[" ".join(f"w{word}" for word in row)] for row in drawn.tolist()]
    places = np.repeat(np.arange(ROWS), ACTIVE), random.integers(0, WIDTH, ROWS * ACTIVE)
    codes = scipy.sparse.csr_array((random.exponential(size=ROWS * ACTIVE), places), (ROWS, WIDTH))
    start = time.perf_counter()
    vocabulary = words.vocabulary(captions)
    middle = time.perf_counter()
    found = names.described(codes, vocabulary)
    seconds = time.perf_counter() - middle
    print(
        f"{ROWS} captions: {len(vocabulary.shown)} words in {middle - start:.1f} s; {WIDTH} features: {seconds:.1f} s"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"peak memory {memory:.2f} GiB; of features that follow no word {sum(bool(one.name) for one in found)} named"
    )


def planted(run: features.Run) -> str:
    """Of the last layer's features that follow a factor: those that captions tell, and those that none tells."""
    pairs, codes = data.reopen(run), run.load(run.layers[-1])
    found = names.described(codes, words.vocabulary(pairs.captions))
    factors = [scenes.factors(row) for row in range(len(pairs))]
    truth = np.array([list(row.values()) for row in factors], float)
    of_factors = names.correlations(
        scipy.sparse.csc_array(codes, dtype=float), names.Scaled.of(scipy.sparse.csr_array(truth))
    )
    told, right, hidden, named = 0, 0, 0, 0
    for feature in np.flatnonzero(
        (np.diff(codes.tocsc().indptr) >= AT_LEAST) & (of_factors.max(axis=1) >= FOLLOWS)
    ):
        factor = list(factors[0])[of_factors[feature].argmax()]
        told += factor in synonyms()
        right += found[feature].name in synonyms().get(factor, ())
        hidden += factor.startswith(HIDDEN)
        named += factor.startswith(HIDDEN) and bool(found[feature].name)
    return (
        f"{right} of {told} by a synonym; of {hidden} that follow what no caption tells {named} have a name"
    )


def synonyms() -> dict[str, set[str]]:
    """The words of each planted factor of a thing."""
    tables = {
        "shape": things.SHAPES,
        "size": things.SIZES,
        "colour": {colour: (colour,) for colour in things.COLOURS},
    }
    found = {
        f"{group}={value}": set(told) for group, table in tables.items() for value, told in table.items()
    }
    for row, column in map(str.split, things.POSITIONS):
        rows = telling.ROW_WORDS[row]
        found[f"position={row} {column}"] = {column, *rows, *(f"{word} {column}" for word in rows)}
    return found


if __name__ == "__main__":
    main()
