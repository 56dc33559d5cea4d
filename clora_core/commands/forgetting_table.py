"""What the runs of `bench forgetting` say together: tables with intervals, hypotheses, matrices as a picture."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Run = Mapping[str, Any]

# Name in a run's file → what the table calls it.
COLUMNS = {
    "learned": "recognised when learned",
    "kept": "recognised at the end",
    "forgetting": "forgotten",
    "confusion": "taken for another",
    "traits": "traits at the end",
    "text_alignment": "edits followed",
    "edited": "recognised when edited",
    "distance": "A_mmd",
    "plasticity": "A_mmd when learned",
    "drift": "F_mmd",
    "copying": "nearer to its own pictures",
    "base_damage": "plain prompts lost",
    "base_distance": "plain prompts' MMD",
    "late_norm": "‖Δ‖ last / first",
    "stored": "numbers stored",
    "processor_seconds": "CPU s per concept",
}
AGAINST = ("kept", "forgetting", "learned", "plasticity", "distance", "base_damage", "processor_seconds")
CELL_PX, GAP_PX, TITLE_PX, NAME_PX, ACROSS_PX = 22, 18, 20, 160, 960
# Student's t for 95 % intervals of 2, 3, … values; for more than there are here, the normal distribution's.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def tables_of(results: Sequence[Run]) -> str:
    """Markdown: a table for each track, and the hypotheses with what the runs say of them."""
    parts = []
    for track in dict.fromkeys(result["track"] for result in results):
        own = [result for result in results if result["track"] == track]
        parts.append(f"## {track.capitalize()}, one after another\n\n{table_of(own)}")
        if compared := compared_with("c-lora", own):
            parts.append(f"### {track.capitalize()}: what each differs from c-lora by\n\n{compared}")
    lines = [f"- **{name}** {claim}\n  {verdict(results)}" for name, claim, verdict in HYPOTHESES]
    return "\n\n".join([*parts, "## Hypotheses, stated before the runs\n\n" + "\n".join(lines)])


def table_of(results: Sequence[Run]) -> str:
    """Per method the mean over its runs, ± half of a 95 % interval; only what was measured in all of them."""
    columns = {name: title for name, title in COLUMNS.items() if all(name in result for result in results)}
    lines = ["| | " + " | ".join(columns.values()) + " | runs |", "|---" * (len(columns) + 2) + "|"]
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        cells = [_with_interval([result[name] for result in own]) for name in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def compared_with(rival: str, results: Sequence[Run]) -> str:
    """The mean differences between runs of the same seed, and so of the same order, ± half of a 95 % interval."""
    theirs = {result["seed"]: result for result in results if result["method"] == rival}
    lines = ["| | " + " | ".join(COLUMNS[name] for name in AGAINST) + " | pairs |", "|---" * (len(AGAINST) + 2) + "|"]
    for method in dict.fromkeys(result["method"] for result in results if result["method"] != rival):
        pairs = [(run, theirs[run["seed"]]) for run in results if run["method"] == method and run["seed"] in theirs]
        if pairs:
            cells = [_with_interval([one[name] - other[name] for one, other in pairs], sign="+") for name in AGAINST]
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(pairs)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def matrices_of(results: Sequence[Run]) -> Image.Image:
    """Every method's mean alignment matrix: row i after learning concept i, column j the concept; green is 1."""
    tracks = dict.fromkeys(result["track"] for result in results)
    parts = [_matrices_of_track(track, [r for r in results if r["track"] == track]) for track in tracks]
    picture = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture


def _matrices_of_track(track: str, results: Sequence[Run]) -> Image.Image:
    methods = list(dict.fromkeys(result["method"] for result in results))
    matrices = [_mean_matrix([r for r in results if r["method"] == method]) for method in methods]
    side = max(len(matrix) for matrix in matrices) * CELL_PX
    width, height = max(side, NAME_PX) + GAP_PX, side + GAP_PX + TITLE_PX
    across = max(1, ACROSS_PX // width)
    picture = Image.new("RGB", (across * width, -(-len(methods) // across) * height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    small = ImageFont.load_default(9)
    for place, (method, matrix) in enumerate(zip(methods, matrices, strict=True)):
        left, top = place % across * width, place // across * height
        pen.text((left, top + 2), f"{track}: {method}", fill="black", font=font)
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                if value is not None:
                    x, y = left + column * CELL_PX, top + TITLE_PX + row * CELL_PX
                    shade = (round(235 - 190 * value), round(90 + 120 * value), round(80 + 30 * value))
                    pen.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), fill=shade)
                    pen.text((x + 2, y + 5), f"{100 * value:.0f}", fill="white", font=small)
    return picture


def _mean_matrix(results: Sequence[Run]) -> list[list[float | None]]:
    matrices = [result["alignment"] for result in results]
    return [
        [None if cells[0] is None else statistics.fmean(cells) for cells in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]


def _with_interval(values: Sequence[float], *, sign: str = "") -> str:
    mean, half = statistics.fmean(values), _half(values)
    return f"{mean:{sign}.3g}" if math.isnan(half) else f"{mean:{sign}.3g} ± {half:.2g}"


def _half(values: Sequence[float]) -> float:
    """Half of a 95 % interval of the mean, by Student's distribution."""
    count = len(values)
    times = STUDENT[count - 2] if 2 <= count < len(STUDENT) + 2 else 1.96
    return times * _standard_error(values)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _values(results: Sequence[Run], method: str, name: str, *, track: str = "identities") -> list[float]:
    return [result[name] for result in results if (result["track"], result["method"]) == (track, method)]


def _compared(
    results: Sequence[Run], methods: Sequence[str], names: Sequence[str], *, track: str = "identities"
) -> str:
    """What was measured, for the reader to judge by; says so where a method was not run."""
    said = []
    for method in methods:
        cells = [(COLUMNS[name], _values(results, method, name, track=track)) for name in names]
        told = ", ".join(f"{title} {_with_interval(values)}" for title, values in cells if values)
        said.append(f"{method}: {told or 'not run'}")
    return "; ".join(said) + "."


def _means(results: Sequence[Run], *wanted: tuple[str, str], track: str = "identities") -> list[float] | None:
    """The mean of each (method, name); None if one was not run at least twice."""
    found = [_values(results, method, name, track=track) for method, name in wanted]
    return [statistics.fmean(values) for values in found] if min(map(len, found)) > 1 else None


def _judged(holds: bool | None, measured: str) -> str:
    return {True: "Holds. ", False: "Does not hold. ", None: "Not decided by these runs. "}[holds] + measured


def _sequential_forgets(results: Sequence[Run]) -> str:
    methods = ("sequential", "single-lora", "full-kv")
    found = [_values(results, method, "forgetting") for method in methods]
    clear = [len(values) > 1 and statistics.fmean(values) - _half(values) > 0 for values in found]
    holds = all(clear) if all(len(values) > 1 for values in found) else None
    return _judged(holds, _compared(results, methods, ("forgetting",)))


def _c_lora_forgets_less(results: Sequence[Run]) -> str:
    measured = _compared(results, ("c-lora", "sequential"), ("forgetting", "kept", "learned"))
    ours, theirs = (_values(results, method, "forgetting") for method in ("c-lora", "sequential"))
    if min(len(ours), len(theirs)) < 2:
        return _judged(None, measured)
    error = math.hypot(_standard_error(ours), _standard_error(theirs))
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
    """How much better the first half of the concepts was learned than the second; None if not run at least twice."""
    runs = [r for r in results if (r["track"], r["method"]) == (track, method)]
    drops = []
    for run in runs:
        own = [row[place] for place, row in enumerate(run["alignment"])]
        half = len(own) // 2
        drops.append(statistics.fmean(own[:half]) - statistics.fmean(own[-half:]))
    return statistics.fmean(drops) if len(drops) > 1 else None


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
