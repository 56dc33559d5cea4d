"""The hypotheses that `bench forgetting` is there to answer, stated before it was run, and what its runs say."""

import math
import statistics
from collections.abc import Callable, Sequence

from .runs import COLUMNS, Run, half, standard_error, with_interval

FEWEST = 3  # runs of a method, before anything is said to hold or not


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


def _sequential_forgets(results: Sequence[Run]) -> str:
    methods = ("sequential", "single-lora", "full-kv")
    found = [_values(results, method, "forgetting") for method in methods]
    clear = [len(values) >= FEWEST and statistics.fmean(values) - half(values) > 0 for values in found]
    holds = all(clear) if all(len(values) >= FEWEST for values in found) else None
    return _judged(holds, _compared(results, methods, ("forgetting",)))


def _c_lora_forgets_less(results: Sequence[Run]) -> str:
    measured = _compared(results, ("c-lora", "sequential"), ("forgetting", "kept", "learned"))
    ours, theirs = (_values(results, method, "forgetting") for method in ("c-lora", "sequential"))
    if min(len(ours), len(theirs)) < FEWEST:
        return _judged(None, measured)
    error = math.hypot(standard_error(ours), standard_error(theirs))
    less = statistics.fmean(theirs) - statistics.fmean(ours) > 2 * error
    kept, learned = (
        statistics.fmean(_values(results, "c-lora", name)) / statistics.fmean(_values(results, "sequential", name))
        for name in ("kept", "learned")
    )
    return _judged(less and kept >= 1 and learned >= 0.8, measured)


def _penalty_shrinks(results: Sequence[Run]) -> str:
    methods = ("c-lora*0.1", "c-lora", "c-lora*10")
    measured = _compared(results, methods, ("late_norm", "learned", "forgetting"))
    means = _means(results, *((method, "late_norm") for method in methods))
    return _judged(None if means is None else means[0] > means[1] > means[2], measured)


def _no_noun(results: Sequence[Run]) -> str:
    measured = _compared(results, ("c-lora", "c-lora+noun"), ("confusion", "kept", "forgetting"))
    means = _means(results, ("c-lora", "confusion"), ("c-lora+noun", "confusion"))
    return _judged(None if means is None else means[0] < means[1], measured)


def _words_alone(results: Sequence[Run]) -> str:
    measured = _compared(results, ("textual-inversion", "separate", "sequential"), ("forgetting", "plasticity"))
    wanted = (("textual-inversion", "forgetting"), ("textual-inversion", "plasticity"), ("separate", "plasticity"))
    means = _means(results, *wanted)
    return _judged(None if means is None else means[0] == 0 and means[1] > means[2], measured)


def _museum_maker(results: Sequence[Run]) -> str:
    """Asked with the styles' words last, as in the paper, and first; it has to hold wherever it was run."""
    whole, rivals = "museum-maker", ("sequential", "c-lora")
    parts = tuple(f"museum-maker-without-{term}" for term in ("style_distillation", "distillation", "weight_direction"))
    names = [(f"{whole}{wording}", *(f"{rival}{wording}" for rival in rivals)) for wording in ("", "+first")]
    asked = (*names[0], *parts, *names[1])
    measured = _compared(results, asked, ("kept", "forgetting", "copying"), track="styles")
    found = [_means(results, *((method, "kept") for method in methods), track="styles") for methods in names]
    better = [means[0] > max(means[1:]) for means in found if means is not None]
    return _judged(all(better) if better else None, measured)


def _others(results: Sequence[Run]) -> str:
    measured = _compared(results, ("ewc-lora", "c-lora", "orthogonal"), ("kept", "forgetting", "distance"))
    means = _means(
        results, ("ewc-lora", "kept"), ("c-lora", "kept"), ("orthogonal", "distance"), ("c-lora", "distance")
    )
    return _judged(None if means is None else means[0] >= means[1] and means[2] <= 1.1 * means[3], measured)


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


HYPOTHESES: tuple[tuple[str, str, Callable[[Sequence[Run]], str]], ...] = (
    ("H1", "Learning on without protection forgets, whatever is trained.", _sequential_forgets),
    (
        "H2",
        "C-LoRA forgets less than no penalty by more than two standard errors, ends no worse, and learns at least 0.8 "
        "as well.",
        _c_lora_forgets_less,
    ),
    ("H3", "C-LoRA's penalty drives late deltas to zero as its weight grows.", _penalty_shrinks),
    ("H4", "A random word without a noun is confused less often than one that starts from its noun.", _no_noun),
    ("H5", "A word alone forgets nothing, but learns less well than deltas do.", _words_alone),
    ("H6", "MuseumMaker holds styles better than C-LoRA and than no protection.", _museum_maker),
    ("H7", "EWC on deltas keeps as much as C-LoRA; orthogonal deltas end within a tenth of its A_mmd.", _others),
    ("H8", "C-LoRA learns late concepts worse than orthogonal deltas do.", _late_concepts),
)
