"""Which words and two-word phrases the captions of each row hold, counted by word family.

A family is the words with one stem of their dictionary form (ride, rides, riding, rode, ridden). There is no list of
stop words: those in use drop top, bottom, left and two, which are concepts here, and a correlation does not reward
"a" anyway.
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from parts import Csr

MANY_ROWS = 2000  # from so many rows on, a word counts that 20 of them hold; before, one that 3 hold
FEWEST = {False: 3, True: 20}
LONGEST = 40  # characters of a word that is looked up in the dictionary, and of one that is shown
SECOND_FORM = 1 / 3  # of the commonest form's count: what a family's second form needs, to be shown too
# No phrase begins or ends in these, which count as single words.
ARTICLES = {"a", "an", "the", "this", "that", "these", "it", "its", "there"}
AUXILIARIES = {"is", "are", "was", "were", "be", "has", "have", "and", "or"}
PREPOSITIONS = {"of", "to", "with", "for", "at", "in", "on"}  # not those of places, as above and under
EDGES = ARTICLES | AUXILIARIES | PREPOSITIONS
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
LATIN = re.compile(r"[a-z\u00df-\u00f6\u00f8-\u024f']+")

Split = Callable[[str], list[str]]  # a caption's words, and its punctuation, in their order
Term = tuple[str, str]  # a key that all forms of a word or phrase share, and the form at hand


class Vocabulary(NamedTuple):
    """What the rows' captions hold.

    `presence`: scipy.sparse CSR float64 [row, term], 1 where a caption of the row holds the term. `shown`: each term
    as a reader sees it, its commonest form or two ("riding, ride"). `parts` int [term, 2]: the terms that are a
    phrase's two words, -1 for a single word.
    """

    presence: Csr
    shown: list[str]
    parts: np.ndarray


def vocabulary(captions: Sequence[Sequence[str]], fewest: int | None = None) -> Vocabulary:
    """The words and two-word phrases that at least `fewest` rows hold; `captions` are those of each row.

    A phrase is two words beside each other in one caption, with no punctuation between. By default `fewest` is 20,
    and 3 where there are fewer than 2,000 rows.
    """
    import scipy.sparse
    from sklearn.feature_extraction.text import CountVectorizer

    fewest = fewest or FEWEST[len(captions) >= MANY_ROWS]
    texts = [unicodedata.normalize("NFC", text).lower().replace("’", "'") for row in captions for text in row]
    split = splitter(texts)
    rows = np.repeat(np.arange(len(captions)), [len(row) for row in captions])
    owner = (np.ones(len(texts)), (rows, np.arange(len(texts))))
    presence = scipy.sparse.csr_array(owner, (len(captions), len(texts)))
    keys: list[str] = []
    if any(
        key for text in texts for key, _ in terms(split(text))
    ):  # scikit-learn refuses to find no term at all
        counter = CountVectorizer(analyzer=lambda text: [key for key, _ in terms(split(text))], binary=True)
        presence = presence @ scipy.sparse.csr_array(counter.fit_transform(texts), dtype=np.float64)
        keys = counter.get_feature_names_out().tolist()
    presence.data[:] = 1  # where several captions of a row hold the term too
    common = np.flatnonzero(presence.sum(axis=0) >= fewest) if keys else np.array([], int)
    keys = [keys[place] for place in common]
    return Vocabulary(presence[:, common].tocsr(), _commonest_forms(keys, texts, split), _parts(keys))


def splitter(texts: Iterable[str]) -> Split:
    """How to split these lower-case texts into Unicode words and punctuation.

    Hyphens and underscores part words as spaces do, an apostrophe within a word does not. A character that is
    written without spaces around (Chinese, Japanese) is a word. Accents and vowel signs belong to the word before.
    """
    characters = set().union(*texts)
    marks = "".join(sorted(c for c in characters if unicodedata.category(c).startswith("M")))
    letter = rf"(?![{UNSPACED}])[^\W_]"
    word = rf"{letter}(?:{letter}|[\u200c\u200d{marks}])*"
    return re.compile(rf"[{UNSPACED}]|{word}(?:'{word})*|[^\w\s-]").findall


def terms(tokens: list[str]) -> Iterator[Term]:
    """The words of a caption, and each two words beside each other of which none is in EDGES."""
    before = None
    for token in tokens:
        if not token[0].isalnum():
            before = None
            continue
        yield family(token), token
        if before is not None and token not in EDGES:
            apart = "" if _is_unspaced(before) and _is_unspaced(token) else " "
            yield f"{family(before)} {family(token)}", f"{before}{apart}{token}"
        before = None if token in EDGES else token


@functools.cache
def family(word: str) -> str:
    """The key that all forms of an English word share; words in other scripts are their own."""
    if len(word) > LONGEST or not LATIN.fullmatch(word):
        return word
    import simplemma

    return _stemmer().stemWord(simplemma.lemmatize(word, lang="en"))


@functools.cache
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@functools.cache
def _is_unspaced(word: str) -> bool:
    return re.fullmatch(f"[{UNSPACED}]", word) is not None


def _commonest_forms(keys: list[str], texts: list[str], split: Split) -> list[str]:
    """Each key's commonest form, and the second where it is a third as common."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in keys}
    for key, form in itertools.chain.from_iterable(terms(split(text)) for text in texts):
        if key in counts:
            counts[key][form] += 1
    shown = []
    for found in counts.values():
        (first, most), *others = found.most_common(2)
        forms = [first, *(form for form, count in others if count >= SECOND_FORM * most)]
        shown.append(", ".join(form if len(form) <= LONGEST else form[: LONGEST - 1] + "…" for form in forms))
    return shown


def _parts(keys: list[str]) -> np.ndarray:
    place = {key: number for number, key in enumerate(keys)}
    both = [[place[word] for word in key.split(" ")] if " " in key else [-1, -1] for key in keys]
    return np.array(both, int).reshape(-1, 2)
