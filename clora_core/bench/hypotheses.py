"""The hypotheses that `bench forgetting` is there to answer, stated before it was run, and what its runs say.

H1b, H2b, H5b and H6b to H6d were put into numbers when some runs had been made, as they had been stated; since then H6b
asks for two standard errors, and H2 compares at C-LoRA's own rate, not at that of `sequential`. A_mmd measures how far
pictures are from real ones, so smaller is better.
"""

import math
import operator
import statistics
from collections.abc import Callable, Sequence
from functools import partial

from ..starter.subjects import EVERYBODY
from .runs import COLUMNS, Run, half, standard_error, with_interval

FEWEST = 3  # runs of a method, before anything is said to hold or not
ALIKE = 4  # of nine traits shared
UNPROTECTED = ("sequential", "single-lora", "full-kv")
NO_PENALTY = "c-lora*0"  # at C-LoRA's own learning rate, which is not the best that `sequential` can have
WHOLE = "museum-maker"
Verdict = Callable[[Sequence[Run]], str]


def _values(results: Sequence[Run], method: str, name: str, *, track: str = "identities") -> list[float]:
    return [result[name] for result in results if (result["track"], result["method"]) == (track, method)]


def _compared(
    results: Sequence[Run], methods: Sequence[str], names: Sequence[str], *, track: str = "identities"
) -> str:
    """What was measured, for the reader to judge by; says so where a method was not run."""
    said = []
    for method in methods:
        cells = [(COLUMNS[name], _values(results, method, name, track=track)) for name in names]
        told = ", ".join(f"{title} {with_interval(values)}" for title, values in cells if values)
        said.append(f"{method}: {told or 'not run'}")
    return "; ".join(said) + "."


def _means(results: Sequence[Run], *wanted: tuple[str, str], track: str = "identities") -> list[float] | None:
    """The mean of each (method, name); None if one was not run often enough."""
    found = [_values(results, method, name, track=track) for method, name in wanted]
    return [statistics.fmean(values) for values in found] if min(map(len, found)) >= FEWEST else None


def _judged(holds: bool | None, measured: str) -> str:
    return {True: "Holds. ", False: "Does not hold. ", None: "Not decided by these runs. "}[holds] + measured


def _clearly_more(values: Sequence[float], *, than: Sequence[float]) -> bool:
    """Whether the mean is higher by more than two standard errors."""
    error = math.hypot(standard_error(values), standard_error(than))
    return statistics.fmean(values) - statistics.fmean(than) > 2 * error


def _between(
    one: str, other: str, names: Sequence[str], holds: Callable[[float, float], bool], *, track: str = "identities"
) -> Verdict:
    """Judged by two methods' means of the first measure; the other measures are told beside it."""

    def verdict(results: Sequence[Run]) -> str:
        means = _means(results, (one, names[0]), (other, names[0]), track=track)
        return _judged(None if means is None else holds(*means), _compared(results, (one, other), names, track=track))

    return verdict


def _sequential_forgets(results: Sequence[Run]) -> str:
    found = [_values(results, method, "distance_forgotten") for method in UNPROTECTED]
    clear = [len(values) >= FEWEST and statistics.fmean(values) - half(values) > 0 for values in found]
    holds = all(clear) if all(len(values) >= FEWEST for values in found) else None
    return _judged(holds, _compared(results, UNPROTECTED, ("distance_forgotten", "forgetting")))


def _alike_harm_more(results: Sequence[Run]) -> str:
    said, greater = [], []
    for method in UNPROTECTED:
        runs = [run for run in results if (run["track"], run["method"]) == ("identities", method)]
        alike, others = ([drop for run in runs for drop in _drops(run, alike=each)] for each in (True, False))
        if len(runs) < FEWEST or not alike or not others:
            return _judged(None, f"{method} not run often enough.")
        greater.append(statistics.fmean(alike) > statistics.fmean(others))
        said.append(f"{method} {statistics.fmean(alike):.3f}, others {statistics.fmean(others):.3f}")
    return _judged(all(greater), f"recognised less after one more that is alike: {'; '.join(said)}.")


def _drops(run: Run, *, alike: bool) -> list[float]:
    """How much less each earlier identity is recognised after each later one that is, or is not, like it."""
    names, matrix = run["subjects"], run["alignment"]
    pairs = ((early, late) for late in range(len(names)) for early in range(late))
    return [
        matrix[late - 1][early] - matrix[late][early]
        for early, late in pairs
        if (_shared_traits(names[early], names[late]) >= ALIKE) == alike
    ]


def _shared_traits(one: str, other: str) -> int:
    return sum(EVERYBODY[one][trait] == EVERYBODY[other][trait] for trait in EVERYBODY[one])


def _c_lora_forgets_less(results: Sequence[Run]) -> str:
    methods = ("c-lora", NO_PENALTY)
    measured = _compared(results, methods, ("distance_forgotten", "distance", "forgetting", "kept"))
    ours, theirs = (_values(results, method, "distance_forgotten") for method in methods)
    ends = _means(results, *((method, "distance") for method in methods))
    if ends is None:
        return _judged(None, measured)
    return _judged(_clearly_more(theirs, than=ours) and ends[0] <= ends[1], measured)


def _penalty_shrinks(results: Sequence[Run]) -> str:
    methods = ("c-lora*0.1", "c-lora", "c-lora*10")
    measured = _compared(results, methods, ("late_norm", "plasticity", "learned", "forgetting"))
    norms, distances = (_means(results, *((m, name) for m in methods)) for name in ("late_norm", "plasticity"))
    if norms is None or distances is None:
        return _judged(None, measured)
    return _judged(norms[0] > norms[1] > norms[2] and distances[0] < distances[1] < distances[2], measured)


def _words_alone(results: Sequence[Run], name: str) -> str:
    """A word alone against deltas, by what is smaller where it is better."""
    word, deltas = "textual-inversion", ("separate", "sequential", "c-lora")
    measured = _compared(results, (word, *deltas), ("forgetting", name))
    means = _means(results, (word, "forgetting"), (word, name), *((method, name) for method in deltas))
    return _judged(None if means is None else means[0] == 0 and means[1] > max(means[2:]), measured)


def _museum_maker(results: Sequence[Run]) -> str:
    """Asked with the styles' words last, as in the paper, and first; it has to hold wherever it was run."""
    rivals = ("sequential", "c-lora")
    names = [(f"{WHOLE}{wording}", *(f"{rival}{wording}" for rival in rivals)) for wording in ("", "+first")]
    measured = _compared(results, (*names[0], *names[1]), ("kept", "forgetting"), track="styles")
    found = [_means(results, *((method, "kept") for method in methods), track="styles") for methods in names]
    better = [means[0] > max(means[1:]) for means in found if means is not None]
    return _judged(all(better) if better else None, measured)


def _without(term: str) -> str:
    return f"{WHOLE}-without-{term}"


def _copies_less(results: Sequence[Run]) -> str:
    methods = (WHOLE, _without("style_distillation"))
    measured = _compared(results, methods, ("copying", "distance", "kept"), track="styles")
    further, nearer = (_values(results, method, "copying", track="styles") for method in methods)
    ends = _means(results, *((method, "distance") for method in methods), track="styles")
    if ends is None:
        return _judged(None, measured)
    return _judged(_clearly_more(further, than=nearer) and ends[0] <= ends[1], measured)


def _distillation_holds(results: Sequence[Run]) -> str:
    methods = [_without(term) for term in ("distillation", "style_distillation", "weight_direction")]
    measured = _compared(results, (WHOLE, *methods), ("distance_forgotten", "forgetting", "kept"), track="styles")
    means = _means(results, *((method, "distance_forgotten") for method in methods), track="styles")
    return _judged(None if means is None else means[0] > max(means[1:]), measured)


def _late_concepts(results: Sequence[Run]) -> str:
    for track in ("crowd", "identities"):  # the longer, where it was run
        ours, theirs = (_later_is_worse(results, method, track=track) for method in ("c-lora", "orthogonal"))
        if ours is not None and theirs is not None:
            measured = (
                f"first half minus second half, recognised when learned: c-lora {ours:.2f}, orthogonal {theirs:.2f}"
            )
            return _judged(ours > theirs, f"{measured} ({track}).")
    return _judged(None, "c-lora or orthogonal not run often enough.")


def _later_is_worse(results: Sequence[Run], method: str, *, track: str) -> float | None:
    """How much better the first half of the concepts was learned than the second; None if not run often enough."""
    runs = [r for r in results if (r["track"], r["method"]) == (track, method)]
    drops = []
    for run in runs:
        own = [row[place] for place, row in enumerate(run["alignment"])]
        half = len(own) // 2
        drops.append(statistics.fmean(own[:half]) - statistics.fmean(own[-half:]))
    return statistics.fmean(drops) if len(drops) >= FEWEST else None


HYPOTHESES: tuple[tuple[str, str, Verdict], ...] = (
    ("H1a", "Learning on without protection forgets, whatever is trained.", _sequential_forgets),
    ("H1b", "It forgets more of those who share four traits or five with the one learned next.", _alike_harm_more),
    (
        "H2a",
        "C-LoRA forgets less than with no penalty by more than two standard errors, and its A_mmd ends no worse.",
        _c_lora_forgets_less,
    ),
    (
        "H2b",
        "It learns as well as with no penalty, to a fifth of A_mmd.",
        _between("c-lora", NO_PENALTY, ("plasticity", "learned"), lambda ours, theirs: ours <= 1.2 * theirs),
    ),
    ("H3", "C-LoRA's penalty drives late deltas to zero as its weight grows, and learning suffers.", _penalty_shrinks),
    (
        "H4",
        "A random word without a noun is confused less often than one that starts from its noun.",
        _between("c-lora", "c-lora+noun", ("confusion", "kept", "forgetting"), operator.lt),
    ),
    (
        "H5a",
        "A word alone forgets nothing, but learns less well than deltas do.",
        partial(_words_alone, name="plasticity"),
    ),
    (
        "H5b",
        "A word alone ends less well than deltas do, also than those that forget.",
        partial(_words_alone, name="distance"),
    ),
    ("H6a", "MuseumMaker holds styles better than C-LoRA and than no protection.", _museum_maker),
    (
        "H6b",
        "Its style distillation copies less of the pictures by more than two standard errors; A_mmd ends no worse.",
        _copies_less,
    ),
    ("H6c", "Of its terms, distillation is the one that forgetting depends on most.", _distillation_holds),
    (
        "H6d",
        "Layer-wise words learn better than words of one part in as many steps.",
        _between(WHOLE, _without("layer_wise"), ("plasticity", "learned", "kept"), operator.lt, track="styles"),
    ),
    (
        "H7a",
        "EWC on deltas keeps as much as C-LoRA.",
        _between("ewc-lora", "c-lora", ("kept", "forgetting", "distance", "stored"), operator.ge),
    ),
    (
        "H7b",
        "Orthogonal deltas end within a tenth of C-LoRA's A_mmd.",
        _between("orthogonal", "c-lora", ("distance", "kept"), lambda theirs, ours: theirs <= 1.1 * ours),
    ),
    ("H8", "C-LoRA learns late concepts worse than orthogonal deltas do.", _late_concepts),
)
