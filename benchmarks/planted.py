"""Worlds in which it is known how much two encoders share, and what each score makes of them.

    uv run benchmarks/planted.py [--quick] [--figure planted.png]

Concepts fall on rows with power-law frequencies; a share of A's are B's too; each SAE sees them with dropped,
false and rescaled activations, and keeps the k largest of a row. 94 worlds take about five minutes on two cores.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.stats

sys.path.insert(0, str(Path(__file__).parent.parent))

from comparing import trust
from comparing.clusters import clusters
from comparing.found import weighted
from comparing.halves import Side
from comparing.heldout import matched
from comparing.influence import feature_errors, held_out, influence
from comparing.older import debiased_cka, mutual_neighbours, soft_matching
from comparing.passes import Held, evidence
from comparing.pearson import Sums
from comparing.sharedness import sharedness_order, statuses
from comparing.trust import discovered

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
APART = 0.15  # truths at least so far apart should be ordered rightly


class Noise(NamedTuple):
    """What an SAE does to an activation: the share it misses, false ones per true one, and the gain's spread."""

    drop: float
    false: float
    gain: float


LEVELS = {"low": Noise(0.1, 0.1, 0.2), "mid": Noise(0.2, 0.2, 0.3), "high": Noise(0.35, 0.35, 0.5)}


class Setting(NamedTuple):
    """A kind of world: rows, widths, exponents of the frequencies, noise, and what becomes of shared concepts."""

    n_rows: int = 20_000
    d_A: int = 1024
    d_B: int = 1024
    zipf_A: float = 0.9
    zipf_B: float = 0.9
    noise_A: str = "low"
    noise_B: str = "low"
    split: float = 0.0  # share of the shared concepts that are two features of B
    parts: tuple[float, float] = (0.5, 0.5)  # of the rows of such a concept
    nuisance: float = 0.0
    k: int = 16


SETTINGS = {
    "base": Setting(),
    "noise high": Setting(noise_A="high", noise_B="high"),
    "A low, B high": Setting(noise_A="low", noise_B="high"),
    "N 2000": Setting(n_rows=2000),
    "Zipf 1.3": Setting(zipf_A=1.3, zipf_B=1.3),
    "d_B 512": Setting(d_B=512),
    "d_B 2048": Setting(d_B=2048),
    "d 512 and 2048": Setting(d_A=512, d_B=2048),
    "split": Setting(split=0.5),
    "absorbed": Setting(split=0.5, parts=(0.7, 0.3)),
    "nuisance .6": Setting(nuisance=0.6),
    "N 2000, Zipf 1.3, d_B 2048": Setting(n_rows=2000, zipf_A=1.3, zipf_B=1.3, d_B=2048),
    "B Zipf 1.3": Setting(zipf_B=1.3),
}
SPLIT = ("split", "absorbed")
QUICK = [("base", 0.0), ("base", 0.5), ("base", 1.0), ("noise high", 0.5), ("A low, B high", 0.25), ("N 2000", 0.0),
         ("N 2000", 0.5), ("Zipf 1.3", 0.25), ("d_B 2048", 0.0), ("d_B 512", 0.5), ("split", 0.5), ("nuisance .6", 0.0)]  # fmt: skip

# ------------------------------------------------------------------------------------------------- generator


class Entries(NamedTuple):
    """Where concepts are active: `concept`, `row` and `value`, an item an activation."""

    concept: np.ndarray
    row: np.ndarray
    value: np.ndarray
    n_concepts: int
    n_rows: int

    def take(self, which: np.ndarray) -> "Entries":
        """Some of the concepts, numbered anew in that order."""
        place = np.full(self.n_concepts, -1)
        place[which] = np.arange(len(which))
        kept = place[self.concept] >= 0
        return Entries(place[self.concept[kept]], self.row[kept], self.value[kept], len(which), self.n_rows)

    def beside(self, other: "Entries") -> "Entries":
        """These concepts, then the other's."""
        fields = zip((self.concept, *self[1:3]), (other.concept + self.n_concepts, *other[1:3]), strict=True)
        return Entries(*map(np.concatenate, fields), self.n_concepts + other.n_concepts, self.n_rows)


def frequencies(n: int, zipf: float, total: float = 20, cap: float = 0.3) -> np.ndarray:
    """p_c proportional to c^-zipf, of sum `total`; what is above `cap` goes to the others."""
    p = np.arange(1, n + 1, dtype=float) ** -zipf
    p *= min(total, cap * n) / p.sum()
    while (p > cap + 1e-12).any():
        free, excess = p < cap, np.maximum(p - cap, 0).sum()
        p = np.minimum(p, cap)
        p[free] *= 1 + excess / p[free].sum()
    return p


def concepts(p: np.ndarray, n_rows: int, rng: np.random.Generator, tilt: np.ndarray | None = None) -> Entries:
    """Each concept on Binomial(N, p) rows, log-normal; half of them follow exp(+-tilt) [row] where it is given."""
    rows = []
    for number, count in enumerate(rng.binomial(n_rows, p)):
        if tilt is None or number % 2:
            rows.append(rng.choice(n_rows, count, replace=False))
        else:
            sign = 1 if number % 4 else -1
            rows.append(np.argpartition(-(sign * tilt + rng.gumbel(size=n_rows)), max(count - 1, 0))[:count])
    counts = [len(found) for found in rows]
    value = np.exp(0.6 * rng.standard_normal(sum(counts)))
    return Entries(np.repeat(np.arange(len(p)), counts), np.concatenate(rows), value, len(p), n_rows)


def children(
    entries: Entries, which: np.ndarray, parts: tuple[float, float], rng: np.random.Generator
) -> Entries:
    """Concepts `which` become two: each active row goes to one of them; the second stands at the end."""
    second = np.full(entries.n_concepts, -1)
    second[which] = entries.n_concepts + np.arange(len(which))
    moved = (second[entries.concept] >= 0) & (rng.random(len(entries.row)) < parts[1])
    concept = np.where(moved, second[entries.concept], entries.concept)
    return Entries(concept, entries.row, entries.value, entries.n_concepts + len(which), entries.n_rows)


def encode(entries: Entries, noise: Noise, k: int, rng: np.random.Generator) -> scipy.sparse.csr_array:
    """What an SAE records of the concepts: float32 CSR [row, concept], the `k` largest of a row."""
    kept = rng.random(len(entries.row)) >= noise.drop
    value = entries.value[kept] * np.exp(noise.gain * rng.standard_normal(kept.sum()))
    false = rng.poisson(noise.false * np.bincount(entries.concept, minlength=entries.n_concepts))
    concept = np.concatenate([entries.concept[kept], np.repeat(np.arange(entries.n_concepts), false)])
    row = np.concatenate([entries.row[kept], rng.integers(0, entries.n_rows, false.sum())])
    value = np.concatenate([value, 0.6 * np.exp(0.6 * rng.standard_normal(false.sum()))])
    order = np.lexsort((-value, row))
    row, concept, value = row[order], concept[order], value[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    best = rank < k
    shape = entries.n_rows, entries.n_concepts
    codes = scipy.sparse.csr_array((value[best].astype(np.float32), (row[best], concept[best])), shape=shape)
    codes.sum_duplicates()
    return codes


class World(NamedTuple):
    """Two SAEs of each side, CSR [row, feature], and the features of B that have each concept of A's.

    `partners` int64 [2, feature of A]: -1 where B does not have the concept, or not a second time.
    """

    A: scipy.sparse.csr_array
    A2: scipy.sparse.csr_array
    B: scipy.sparse.csr_array
    B2: scipy.sparse.csr_array
    partners: np.ndarray

    @property
    def shared_A(self) -> np.ndarray:
        return self.partners[0] >= 0

    @property
    def shared_B(self) -> np.ndarray:
        return np.isin(np.arange(self.B.shape[1]), self.partners)


def world(setting: Setting, share: float, seed: int, rows_seed: int | None = None) -> World:
    """A world with `share` of A's concepts in B; another `rows_seed` draws other rows of the same encoders."""
    rng = np.random.default_rng([seed, 0])
    shared = np.sort(rng.choice(setting.d_A, round(share * setting.d_A), replace=False))
    divided = rng.random(len(shared)) < setting.split
    fits = np.cumsum(1 + divided) <= setting.d_B
    shared, divided = shared[fits], divided[fits]
    n_shared = len(shared) + int(divided.sum())
    own = rng.choice(frequencies(setting.d_B, setting.zipf_B), setting.d_B - n_shared, replace=False)
    rng = np.random.default_rng([seed, 1, seed if rows_seed is None else rows_seed])
    tilt = setting.nuisance * rng.standard_normal(setting.n_rows) if setting.nuisance else None
    A = concepts(frequencies(setting.d_A, setting.zipf_A), setting.n_rows, rng, tilt)
    B = children(A.take(shared), np.flatnonzero(divided), setting.parts, rng)
    if len(own):
        B = B.beside(concepts(own, setting.n_rows, rng, tilt))
    levels = ((A, setting.noise_A), (A, setting.noise_A), (B, setting.noise_B), (B, setting.noise_B))
    codes = [encode(side, LEVELS[level], setting.k, rng) for side, level in levels]
    partners = np.full((2, setting.d_A), -1)
    partners[0, shared] = np.arange(len(shared))
    partners[1, shared[divided]] = np.arange(len(shared), n_shared)
    return World(*codes, partners)


def captioned(n_images: int, captions: int, seed: int, d: int = 512) -> tuple[list, list[str]]:
    """Two runs that share nothing, on `captions` rows an image: the same picture each time, its own caption each.

    Returns their codes and the image of each row.
    """
    rng = np.random.default_rng(seed)
    A, B = (concepts(frequencies(d, 0.9), n_images, rng) for _ in range(2))
    picture = np.repeat(np.arange(n_images), captions)
    rows = np.concatenate([B.row * captions + number for number in range(captions)])
    B = Entries(np.tile(B.concept, captions), rows, np.tile(B.value, captions), d, n_images * captions)
    codes = [encode(A, LEVELS["mid"], 16, rng)[picture], encode(B, LEVELS["mid"], 16, rng)]
    return codes, [f"{image}.jpg" for image in picture]


CLASSES = {"G alone": 0.1, "everywhere": 0.3, "H alone": 0.1, "one of G": 0.1, "M alone": 0.4}
HAS = {"G alone": "G", "everywhere": "GH", "H alone": "H", "one of G": "1", "M alone": ""}


def groups_world(
    seed: int, noise_G: str = "mid", noise_H: str = "mid", n_rows: int = 5000, d: int = 512, n_runs: int = 2
):
    """M, the runs of G and of H (CSR), and the class of each feature of M; each run has its own other concepts."""
    rng = np.random.default_rng([seed, 2])
    kinds = np.repeat(list(CLASSES), [round(share * d) for share in CLASSES.values()])
    kinds = rng.permutation(np.append(kinds, ["M alone"] * (d - len(kinds))))
    p, own = frequencies(d, 0.9), concepts(frequencies(d, 0.9), n_rows, rng)

    def run(letter, number, level):
        known = [
            letter in HAS[kind] or (letter == "G" and number == 0 and HAS[kind] == "1") for kind in kinds
        ]
        shared = own.take(np.flatnonzero(known))
        rest = concepts(rng.choice(p, d - sum(known), replace=False), n_rows, rng)
        return encode(shared.beside(rest), LEVELS[level], 16, rng)

    M = encode(own, LEVELS["mid"], 16, rng)
    G = [run("G", number, noise_G) for number in range(n_runs)]
    return M, G, [run("H", number, noise_H) for number in range(n_runs)], kinds


class Sharedness(NamedTuple):
    """Comparative Sharedness of a groups_world, of the features that count [feature]."""

    delta: np.ndarray
    status: list
    true: np.ndarray


def sharedness(seed: int, **choices) -> Sharedness:
    """Raw Delta, each feature's status, and whether it is in all of G and in none of H."""
    M, G, H, kinds = groups_world(seed, **choices)
    (own, *others), groups = sides([M, *G, *H])
    found = [matched(own, other)[0] for other in others]
    held = np.array([one.held_out for one in found])
    se = np.array(
        [feature_errors(own, [other], one, groups) for other, one in zip(others, found, strict=True)]
    )
    raw = np.maximum([one.rho[0] for one in found], 0) ** 2
    n = len(G)
    delta = own.total * (raw[:n].min(axis=0) - raw[n:].max(axis=0))
    names = [f"{letter}{number}" for letter in "GH" for number in range(n)]
    status = statuses(held[:n], se[:n], held[n:], se[n:], names[:n], names[n:])
    counts = np.flatnonzero(own.counted)
    return Sharedness(delta[counts], [status[i] for i in counts], (kinds == "G alone")[counts])


def sides(codes: list[scipy.sparse.csr_array], names: list[str] | None = None, min_active: int = 10):
    """Runs as the passes take them, and the clusters of their rows."""
    groups = clusters(names or [str(row) for row in range(codes[0].shape[0])])
    return [Side(one, groups.half, min_active) for one in codes], groups


# ---------------------------------------------------------------------------------------------------- scores


class Row(NamedTuple):
    """A world, its truths, and what the scores make of it.

    The truths are of features that count: one whose partner is active too seldom to count is not shared. `all`
    is the share of the weight that is shared in all.
    """

    setting: str
    share: float
    truth: float  # share of the weight
    all: float
    count: float  # share of the features
    dice: float
    scores: dict[str, float]


WEIGHT, COUNT, DICE = "truth", "count", "dice"
METRICS = {
    "wMPPC raw": WEIGHT,
    "wMPPC adjusted": WEIGHT,
    "wMPPC held out": WEIGHT,
    "... / AA'": WEIGHT,
    "... / sqrt(AA' BB')": WEIGHT,
    "coverage C(.3)": WEIGHT,
    "C(.5)": WEIGHT,
    "weight of discoveries": WEIGHT,
    "MPPC raw": COUNT,
    "soft matching, held out": DICE,
    "linear CKA, debiased": WEIGHT,
    "mutual 10-NN less chance": WEIGHT,
}
NEIGHBOUR_ROWS = 2000


def measure(name: str, share: float, seed: int) -> Row:
    """One world of the grid."""
    made = world(SETTINGS[name], share, seed)
    (A, A2, B, B2), groups = sides([made.A, made.A2, made.B, made.B2])
    passed = evidence(Held([A], [B]), groups)
    found = passed.forward["last_layer"][0]
    score = trust.score([found], groups)
    own_A, own_B = (held_out(matched(x, y)[0], x.total, x.counted) for x, y in ((A, A2), (B, B2)))
    scores = {
        "wMPPC raw": score.value,
        "wMPPC adjusted": score.adjusted,
        "wMPPC held out": score.held_out,
        "... / AA'": score.held_out / own_A,
        "... / sqrt(AA' BB')": trust.attenuation(score.held_out, own_A, own_B),
        "coverage C(.3)": score.coverage["0.3"],
        "C(.5)": score.coverage["0.5"],
        "weight of discoveries": weighted(discovered(found).astype(float), found.facts.weight),
        "MPPC raw": float(found.matched.every[A.total > 0].mean()),
        **older_scores(A, B, groups),
    }
    counts = np.append(B.counted, False)[made.partners].any(axis=0)  # -1 is the False at the end
    n_counted = A.counted.sum(), B.counted.sum()
    both = (counts & A.counted).sum() + (made.shared_B & B.counted).sum()
    truths = [weighted(true.astype(float), found.facts.weight) for true in (counts, made.shared_A)]
    return Row(name, share, *truths, counts[A.counted].mean(), both / sum(n_counted), scores)


def older_scores(A: Side, B: Side, groups) -> dict[str, float]:
    """Soft matching held out, debiased CKA, and mutual neighbours over chance."""

    def correlations(rows):
        sums = Sums.of(A.codes.take(rows), B.codes.take(rows)).correlations()
        return sums[A.counted][:, B.counted]

    halves = [np.flatnonzero(groups.half == half) for half in (0, 1)]
    plain = soft_matching(*map(correlations, halves))
    rows = np.arange(min(NEIGHBOUR_ROWS, A.codes.n_rows))
    near = mutual_neighbours(A.codes.matrix[rows], B.codes.matrix[rows])
    return {
        "soft matching, held out": plain,
        "linear CKA, debiased": debiased_cka(A.codes, B.codes),
        "mutual 10-NN less chance": near.value - near.floor,
    }


def grid(quick: bool = False) -> list[Row]:
    """The worlds of the benchmark: 13 settings by 6 shares and 16 of a second seed, or a dozen."""
    if quick:
        cells = [(name, share, 0) for name, share in QUICK]
    else:
        cells = [(name, share, 0) for name in SETTINGS for share in SHARES]
        cells += [(name, 0.0, 1) for name in SETTINGS] + [("base", share, 1) for share in (0.25, 0.5, 0.75)]
    return [measure(*cell) for cell in cells]


def table(rows: list[Row]) -> list[str]:
    """A line a metric: its mean at share 0, bias, error, order, and range at share .5."""
    lines = [
        f"{'metric':24} {'at 0 (max)':>14} {'bias':>7} {'RMSE':>6} {'Spearman':>9} {'wrong':>7}  range at .5"
    ]
    for metric, kind in METRICS.items():
        value = np.array([row.scores[metric] for row in rows])
        truth = np.array([getattr(row, kind) for row in rows])
        none, half = (value[[row.share == share for row in rows]] for share in (0, 0.5))
        error, order = value - truth, scipy.stats.spearmanr(value, truth).statistic
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(rows)), 2)
            if abs(truth[a] - truth[b]) >= APART
        ]
        wrong = np.mean([(value[a] - value[b]) * (truth[a] - truth[b]) <= 0 for a, b in pairs])
        lines.append(
            f"{metric:24} {none.mean():6.3f} ({none.max():5.3f}) {error.mean():+7.3f} {np.sqrt((error**2).mean()):6.3f} "
            f"{order:9.3f} {wrong:7.1%}  {half.min():.2f}-{half.max():.2f}"
        )
    return lines


def targets(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """What must hold, as (largest error found, allowed)."""

    def worst(metric, chosen):
        return max((abs(row.scores[metric] - row.truth) for row in chosen), default=0.0)

    whole, none = (
        [row for row in rows if keep(row)]
        for keep in (lambda row: row.setting not in SPLIT, lambda row: row.share == 0)
    )
    return {
        "|held out| where nothing is shared": (worst("wMPPC held out", none), 0.02),
        "C(.3)": (worst("coverage C(.3)", rows), 0.03),
        "held out / sqrt of the seeds, nothing split": (worst("... / sqrt(AA' BB')", whole), 0.03),
    }


# ---------------------------------------------------------------------------------------------------- figure


def draw(rows: list[Row], file: str, quick: bool):
    """Four panels: raw scores, the held-out score over its seeds, nothing shared, and Comparative Sharedness."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    for panel, part in zip(panels.flat, (_raw, _held_out, _nothing_shared, _precision), strict=True):
        part(panel, rows, quick)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _lines(panel, rows: list[Row], metric: str, **style):
    for name in dict.fromkeys(row.setting for row in rows):
        mine = sorted((row.truth, row.scores[metric]) for row in rows if row.setting == name)
        panel.plot(*zip(*mine, strict=True), linewidth=0.8, marker=".", markersize=3, **style)


def _raw(panel, rows: list[Row], quick: bool):
    _lines(panel, rows, "wMPPC raw", color="C0")
    _lines(panel, rows, "linear CKA, debiased", color="C1", linestyle="--")
    panel.plot([], [], color="C0", label="wMPPC, raw")
    panel.plot([], [], color="C1", linestyle="--", label="linear CKA, debiased")
    panel.set(
        title="(a) as they are", xlabel="planted share of the weight", ylabel="score", ylim=(-0.05, 1.05)
    )
    panel.legend(frameon=False)


def _held_out(panel, rows: list[Row], quick: bool):
    _lines(panel, [row for row in rows if row.setting not in SPLIT], "... / sqrt(AA' BB')", color="C0")
    _lines(panel, [row for row in rows if row.setting in SPLIT], "... / sqrt(AA' BB')", color="C3")
    panel.plot([0, 1], [0, 1], color="0.7", linewidth=3, zorder=0)
    panel.plot([], [], color="C0", label="held out / sqrt of the seeds")
    panel.plot([], [], color="C3", label="half of the shared concepts split in two")
    panel.set(title="(b) held out", xlabel="planted share of the weight", ylabel="score", ylim=(-0.05, 1.05))
    panel.legend(frameon=False)


def _nothing_shared(panel, rows: list[Row], quick: bool):
    sizes = (1000, 4000, 16_000) if quick else (1000, 4000, 16_000, 50_000, 118_287)
    for color, width in enumerate((512, 2048) if quick else (512, 2048, 8192)):
        scores = []
        for n_rows in sizes:
            made = world(Setting(n_rows=n_rows, d_B=width), 0.0, 7)
            (A, B), groups = sides([made.A, made.B])
            found = matched(A, B)[0]
            scores.append((weighted(found.every, A.total), influence(A, [B], found), groups))
        held = [one.held_out for _, one, _ in scores]
        errors = [1.96 * one.se(groups) for _, one, groups in scores]
        panel.plot(sizes, [raw for raw, _, _ in scores], color=f"C{color}", label=f"raw, {width} features")
        panel.errorbar(sizes, held, errors, color=f"C{color}", linestyle=":", capsize=3)
    panel.axhline(0, color="0.7", linewidth=1, zorder=0)
    panel.set(
        title="(c) nothing shared: raw, and held out with its 95 %",
        xlabel="rows",
        ylabel="wMPPC",
        xscale="log",
    )
    panel.legend(frameon=False)


def _precision(panel, rows: list[Row], quick: bool):
    for seed in range(2 if quick else 6):
        found = sharedness(seed, noise_H="high")
        by_delta = np.argsort(-found.delta, kind="stable")
        for color, order in (("C0", by_delta), ("C1", sharedness_order(found.status, found.delta))):
            hits = np.cumsum(found.true[order])
            panel.plot(hits / hits[-1], hits / np.arange(1, len(order) + 1), color=color, linewidth=0.8)
        best = np.array([one.rank == 0 for one in found.status])
        panel.plot((best & found.true).sum() / found.true.sum(), found.true[best].mean(), "o", color="C1")
        above = found.delta > 0
        panel.plot((above & found.true).sum() / found.true.sum(), found.true[above].mean(), "o", color="C0")
    panel.plot([], [], "o-", color="C0", label="raw Delta; the point: Delta > 0")
    panel.plot([], [], "o-", color="C1", label="by status, then Delta; the point: present, absent")
    panel.set(
        title="(d) in all of G and none of H, H noisier", xlabel="recall", ylabel="precision", ylim=(0, 1.05)
    )
    panel.legend(frameon=False)


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a dozen worlds")
    parser.add_argument("--figure", help="write the four panels to this file")
    arguments = parser.parse_args(argv)
    rows = grid(arguments.quick)
    print(f"{len(rows)} worlds", *table(rows), sep="\n")
    too_rare = max(abs(row.scores["coverage C(.3)"] - row.all) for row in rows)
    print(
        f"C(.3) against all that is shared, partners too rare to count included: largest error {too_rare:.3f}"
    )
    for what, (found, allowed) in targets(rows).items():
        print(
            f"{what}: largest error {found:.4f}, at most {allowed}: {'met' if found <= allowed else 'NOT MET'}"
        )
    if arguments.figure:
        draw(rows, arguments.figure, arguments.quick)
    return rows


if __name__ == "__main__":
    main()
