"""What a score is read against: the same SAE from another seed, and an encoder with random weights."""

import sys
from collections.abc import Callable, Iterator
from typing import Literal

import features
from comparing.results import Comparison, Control, Direction, Reference, Score
from comparing.trust import attenuation, seed_reference
from plumbing.errors import UserError
from plumbing.processes import team

Compared = Callable[[features.Run, features.Run], Comparison]


def referenced(found: Comparison, run: features.Run, other: features.Run, compared: Compared) -> Comparison:
    """A comparison with the references and controls of both directions, where such runs are recorded.

    `compared` scores a pair of runs, without references.
    """
    forward = _referenced(found.forward, run, other, compared)
    return Comparison(forward, _referenced(found.backward, other, run, compared))


def _referenced(
    direction: Direction, source: features.Run, target: features.Run, compared: Compared
) -> Direction:
    seeds = [other_seed(run) for run in (source, target)]
    selves = [
        None if seed is None else compared(run, seed).forward
        for run, seed in zip((source, target), seeds, strict=True)
    ]
    control = _control(source, target, compared)
    scores = {
        scope: score._replace(
            seed_reference=_ratio(score, selves[1], scope),
            control=None if control is None else _as_control(control, scope, (source, target)),
        )
        for scope, score in direction.wmppc.items()
    }
    reference = None
    if seeds[1] is not None and selves[1] is not None:
        reference = Reference(
            seeds[1].name,
            _data_seed(seeds[1]) == _data_seed(target),
            {scope: _attenuated(score, selves, scope) for scope, score in direction.wmppc.items()},
            _by_band(direction.bands, selves[1].bands),
        )
    return direction._replace(scores=direction.scores | {"wmppc": scores}, reference=reference)


def _ratio(score: Score, own: Direction | None, scope: str) -> float | None:
    """C_AB(.3) / C_BB'(.3)."""
    coverage = None if own is None else own.wmppc[scope].coverage
    if score.coverage is None or coverage is None:
        return None
    return seed_reference(score.coverage, coverage)


def _attenuated(score: Score, selves: list[Direction | None], scope: str) -> float | None:
    """theta_AB / sqrt(theta_AA' theta_BB'), where both sides have seeds."""
    own = [None if one is None else one.wmppc[scope].held_out for one in selves]
    if score.held_out is None or own[0] is None or own[1] is None:
        return None
    return attenuation(score.held_out, own[0], own[1])


def _by_band(bands: dict[str, float] | None, own: dict[str, float] | None) -> dict[str, float]:
    """The reference of each band of n_eff that both have."""
    own = own or {}
    return {band: share / own[band] for band, share in (bands or {}).items() if own.get(band, 0) > 0}


def _control(
    source: features.Run, target: features.Run, compared: Compared
) -> tuple[features.Run, Direction] | None:
    """The score with the target's random version in its place, or, where there is none, with the source's."""
    for run in (target, source):
        control = control_of(run)
        if control is not None and control.name not in (source.name, target.name):
            pair = (source, control) if run is target else (control, target)
            return control, compared(*pair).forward
    return None


def _as_control(
    found: tuple[features.Run, Direction], scope: str, pair: tuple[features.Run, features.Run]
) -> Control | None:
    """None of all layers, where the control has others than the run that it stands in for."""
    run, direction = found
    replaced = pair[0] if direction.source == run.name else pair[1]
    if scope == "all_layers" and run.layers != replaced.layers:
        return None
    score = direction.wmppc[scope]
    coverage = (score.coverage or {}).get("0.3")
    return Control(run.name, score.held_out, coverage, score.discovered, _random(run))


def other_seed(run: features.Run) -> features.Run | None:
    """A run of the same encoder, layers, data and SAE from another seed; one of another order of the data first.

    Where there is none, runs that are of other samples alone are named in a note.
    """
    seeds = [other for other in _others(run) if _is_seed_of(run, other)]
    same = [other for other in seeds if _same_samples(run, other)]
    if seeds and not same:
        names = ", ".join(repr(other.name) for other in seeds)
        note(
            f"no seed reference of run {run.name!r}: of another seed, but of other samples or captions: {names}"
        )
    return min(same, key=lambda other: (_data_seed(other) == _data_seed(run), other.name), default=None)


def control_of(run: features.Run) -> features.Run | None:
    """A run of the same encoder with random weights on the same samples; else one with a random dictionary.

    What it recorded, and the size of its SAE, are those of the run: C(.3) hangs on both. Where there is none, random
    runs of something else alone are named in a note.
    """
    if _random(run) is not None or not _encoder(run):
        return None
    own = _encoder(run)
    fitting: list[features.Run] = []
    near: list[features.Run] = []
    for other in _others(run):
        its = _encoder(other)
        alike = [own.get(key) == its.get(key) for key in ("model", "modality")]
        if _random(other) is not None and all(alike) and _same_samples(run, other):
            (fitting if _recorded(run) == _recorded(other) else near).append(other)
    if near and not fitting:
        names = ", ".join(repr(other.name) for other in near)
        note(
            f"no control of run {run.name!r}: random, but of another checkpoint, layer, token or size of SAE: {names}"
        )
    return min(
        fitting, key=lambda other: (_random(other), _seed(other) != _seed(run), other.name), default=None
    )


def _others(run: features.Run) -> Iterator[features.Run]:
    """All other recorded runs; damaged ones are left out."""
    for name in features.run_names():
        if name != run.name:
            try:
                yield features.open_run(name)
            except UserError as error:
                note(f"{error}")


_said: set[str] = set()


def note(text: str):
    """Say something once."""
    if text not in _said and team().rank == 0:
        _said.add(text)
        print(f"note: {text}", file=sys.stderr)


def _same_samples(run: features.Run, other: features.Run) -> bool:
    """Whether two runs of an encoder are of the same samples and, where it is of text, of the same captions of them."""
    if _encoder(run).get("modality") == "text" and run.caption != other.caption:
        return False
    return (run.fingerprint, run.n_samples) == (other.fingerprint, other.n_samples)


def _encoder(run: features.Run) -> features.Encoder:
    """The encoder of a run; one recorded before there was a choice of precision ran in float32."""
    found = run.manifest.get("encoder")
    return {**found, "encoder_precision": found.get("encoder_precision", "float32")} if found else {}


def _random(run: features.Run) -> Literal["encoder", "sae", None]:
    """What of a run is random and never trained."""
    if _encoder(run).get("random_weights") is not None:
        return "encoder"
    training = run.manifest.get("training") or {}
    return "sae" if training.get("recipe") == features.RANDOM_SAE else None


def _is_seed_of(run: features.Run, other: features.Run) -> bool:
    """Whether two runs differ in the SAE's seed, and otherwise in samples, captions or their order at most."""
    seeds = _seed(run), _seed(other)
    if None in seeds or seeds[0] == seeds[1]:
        return False
    return _encoder(run) == _encoder(other) and _sae(run) == _sae(other) and _same_settings(run, other)


def _sae(run: features.Run) -> list[object]:
    manifest = run.manifest
    sae = (manifest.get("sae") or {}).get(run.layers[-1])
    return [run.layers, manifest.get("token"), manifest.get("activation"), sae]


def _same_settings(run: features.Run, other: features.Run) -> bool:
    """Whether the SAEs of two runs were trained alike but for their seeds, as far as both run.json say."""
    own, its = (one.manifest.get("training") or {} for one in (run, other))
    if any(own.get(key) != its.get(key) for key in ("sae", "recipe")):
        return False
    return all(own[key] == its[key] for key in own.keys() & its.keys() - {"seed", "data_seed"})


def _recorded(run: features.Run) -> list[object]:
    """What of an encoder a run recorded in its last layer, and through an SAE of which size."""
    encoder, manifest = run.manifest["encoder"], run.manifest
    sae = (manifest.get("sae") or {}).get(run.layers[-1])
    place = [encoder["checkpoint"], encoder.get("blocks"), run.layers[-1]]
    return [*place, manifest.get("token"), manifest.get("activation"), sae]


def _seed(run: features.Run) -> int | None:
    return (run.manifest.get("training") or {}).get("seed")


def _data_seed(run: features.Run) -> int | None:
    return (run.manifest.get("training") or {}).get("data_seed")
