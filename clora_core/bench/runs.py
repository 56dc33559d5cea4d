"""The files of benchmark runs, and means over runs with their 95 % intervals."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]

# Name in a run's file → title of its column in the table.
COLUMNS = {
    "learned": "recognized when learned",
    "kept": "recognized at the end",
    "forgetting": "forgotten",
    "confusion": "confused with another",
    "traits": "traits at the end",
    "text_alignment": "edits followed",
    "edited": "recognized when edited",
    "edited_all": "recognized in eight kinds of edits",
    "distance": "A_mmd",
    "plasticity": "A_mmd when learned",
    "distance_forgotten": "F_qual",
    "drift": "F_mmd",
    "copying": "distance to training minus held-out pictures",
    "base_damage": "plain prompts lost",
    "base_distance": "plain prompts' MMD",
    "late_norm": "‖Δ‖ last / first",
    "stored": "numbers stored",
    "processor_seconds": "CPU s per concept",
}

# Student's t for 95 % intervals of 2, 3, … values; beyond that, the normal distribution's.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def read_json(path: Path) -> Run:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def with_interval(values: Sequence[float], *, sign: str = "") -> str:
    """The mean, ± half of its 95 % interval where there are several values."""
    mean, around = statistics.fmean(values), half(values)
    return f"{mean:{sign}.3g}" if math.isnan(around) else f"{mean:{sign}.3g} ± {around:.2g}"


def half(values: Sequence[float]) -> float:
    """Half of a 95 % interval of the mean, by Student's distribution; NaN for a single value."""
    if (count := len(values)) < 2:
        return math.nan
    times = STUDENT[count - 2] if count < len(STUDENT) + 2 else 1.96
    return times * (statistics.stdev(values) / math.sqrt(count))
