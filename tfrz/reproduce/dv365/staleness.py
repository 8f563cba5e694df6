"""Slices of a long history beside a recent encoder, fresh and stale, and training with a gap."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrz.data.timelines.slicing import SliceSpecification
from tfrz.metrics.binary import normalized_entropy
from tfrz.reproduce.dv365.histories import (
    DAYS,
    IMPRESSIONS,
    RECENT,
    SIX,
    TEST_DAY,
    TIMED,
    TRAIN_DAYS,
    Histories,
    fit_logistic,
    logits,
)
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row

_FRESH = SliceSpecification(1, (*RECENT, *SIX, *TIMED), gap_hours=0.0)
_NAMES = [s.name for s in _FRESH.slices]
_RECENT = [_NAMES.index(s.name) for s in RECENT]
_SIX = [_NAMES.index(s.name) for s in SIX]
_TIMED = [_NAMES.index(s.name) for s in TIMED]

_AGES = (1, 2, 3, 7)
_ONLY, _POOL, _SLICES, _WINDOWS = (
    "last 60 impressions (views, likes)",
    "+ one mean-pooled full history",
    "+ six slices",
    "+ six slices, 3-day and 7-day like and all",
)
_STALE = {age: f"+ six slices, {age} day{'s' * (age > 1)} old (retrained)" for age in _AGES}
# NE from the specification's toy, and its changes; not the paper's.
_TOY = {
    _ONLY: (0.9322, ""),
    _POOL: (0.9230, "-0.99%"),
    _SLICES: (0.8479, "-9.05%"),
    _WINDOWS: (0.8473, "-9.11%"),
    _STALE[1]: (0.8485, "-8.98%"),
    _STALE[2]: (0.8489, "-8.94%"),
    _STALE[3]: (0.8492, "-8.91%"),
    _STALE[7]: (0.8498, "-8.84%"),
}
_SETTING = {
    "days": DAYS,
    "impressions_a_day": IMPRESSIONS,
    "train_days": TRAIN_DAYS,
    "test_day": TEST_DAY,
    "sliced_as_of": "the beginning of the day of the impression, less the age",
    "feature": "ln((w + 1) / (W + 32)): weight of the candidate's topic in a slice, and of all",
    "model": "logistic regression, without penalty",
}


def _keys(context: Context) -> list[dict[str, Any]]:
    return [{"seed": seed, "users": context.size["users"]} for seed in context.seeds]


def stale_once(key: dict[str, Any]) -> Row:
    """Returns the normalized entropy of every set of features, on one world."""
    days = (*TRAIN_DAYS, TEST_DAY)
    as_of = [day - age for day in days for age in (0, *_AGES)]
    histories = Histories(key["users"], key["seed"], [(_FRESH, as_of)])
    train, test = histories.likes(TRAIN_DAYS), histories.likes([TEST_DAY])

    def judged(fresh: list[int], old: list[int], age: int) -> float:
        """Judges features of fresh slices together with features of slices `age` days old."""
        every = [
            np.concatenate(
                [
                    histories.features(_FRESH, day, day)[:, fresh],
                    histories.features(_FRESH, day - age, day)[:, old],
                ],
                axis=1,
            )
            for day in days
        ]
        weights = fit_logistic(np.concatenate(every[:-1]), train)
        return float(normalized_entropy(test, logits(every[-1], weights)))

    found = {
        _ONLY: judged(_RECENT, [], 0),
        _POOL: judged(_RECENT, [_NAMES.index("all")], 0),
        _SLICES: judged(_RECENT, _SIX, 0),
        _WINDOWS: judged(_RECENT, [*_SIX, *_TIMED], 0),
        **{name: judged(_RECENT, _SIX, age) for age, name in _STALE.items()},
    }
    says = f"seed {key['seed']}: six slices {found[_SLICES]:.4f}"
    return {"entropy": found, "likes": float(test.mean()), "says": says}


def _staleness(context: Context) -> Outcome:
    rows = context.trained("staleness.jsonl", stale_once, _keys(context))
    found = {name: np.array([row["entropy"][name] for row in rows]) for name in _TOY}
    mean = {name: float(values.mean()) for name, values in found.items()}
    gains = {name: mean[_ONLY] - value for name, value in mean.items()}
    table = [
        (
            name,
            f"{mean[name]:.4f}",
            f"{found[name].std(ddof=1):.4f}",
            "" if name == _ONLY else f"{mean[name] / mean[_ONLY] - 1:+.2%}",
            f"{toy:.4f}",
            change,
        )
        for name, (toy, change) in _TOY.items()
    ]
    kept = gains[_STALE[7]] / gains[_SLICES]
    return Outcome(
        columns=(
            "features",
            "NE",
            "std",
            "to recent only",
            "NE of the specification's toy",
            "its change",
        ),
        rows=table,
        checks=[
            Check(
                "NE with six slices is at least 0.05 below that with one pooled history",
                mean[_SLICES] <= mean[_POOL] - 0.05,
                f"{mean[_SLICES]:.4f} against {mean[_POOL]:.4f}",
            ),
            Check(
                "NE with one pooled history is below that of the last 60 impressions alone",
                mean[_POOL] < mean[_ONLY],
                f"{mean[_POOL]:.4f} against {mean[_ONLY]:.4f}",
            ),
            Check(
                "slices 7 days old keep at least 95 % of the gain over the last 60 alone",
                gains[_SLICES] > 0 and kept >= 0.95,
                f"{kept:.1%}",
            ),
        ],
        details={**_SETTING, "users": context.size["users"], "runs": rows},
    )


# The same with the product's gap of a day. Its 3 and 7 days end a day ago.
_GAP = SliceSpecification(1, (*SIX, *TIMED), gap_hours=24.0)
_NO_GAP = SliceSpecification(1, (*SIX, *TIMED), gap_hours=0.0)
_OLD = (0, 1, 2, 4, 7)
_NONE, _DAY, _MOVED = "none", "a day", "a day, windows moved"
# Of the specification's toy: without and with a gap, by age.
_TOY_GAP = {
    0: (0.84743, 0.84779),
    1: (0.84932, 0.84940),
    2: (0.85072, 0.85062),
    4: (0.85264, 0.85217),
    7: (0.85407, 0.85335),
}


def gap_once(key: dict[str, Any]) -> Row:
    """Returns the normalized entropy by training gap and embedding age, on one world."""
    plain = [*TRAIN_DAYS, *(day - 1 for day in TRAIN_DAYS), *(TEST_DAY - age for age in _OLD)]
    # With a gap of a day, what is known at the beginning of a day is sliced as of the next.
    gapped = [*TRAIN_DAYS, *(TEST_DAY - age + 1 for age in _OLD)]
    histories = Histories(key["users"], key["seed"], [(_NO_GAP, plain), (_GAP, gapped)])
    train, test = histories.likes(TRAIN_DAYS), histories.likes([TEST_DAY])
    found = {}
    for name, spec, trained, tested in (
        (_NONE, _NO_GAP, 0, 0),
        (_DAY, _GAP, 0, 1),
        (_MOVED, _NO_GAP, -1, 0),
    ):
        features = [histories.features(spec, day + trained, day) for day in TRAIN_DAYS]
        weights = fit_logistic(np.concatenate(features), train)
        for age in _OLD:
            seen = histories.features(spec, TEST_DAY - age + tested, TEST_DAY)
            found[f"{name}/{age}"] = float(normalized_entropy(test, logits(seen, weights)))
    gain = found[f"{_NONE}/7"] - found[f"{_DAY}/7"]
    return {"entropy": found, "says": f"seed {key['seed']}: a gap gains {gain:+.5f} at 7 days"}


def _gap_training(context: Context) -> Outcome:
    rows = context.trained("gap_training.jsonl", gap_once, _keys(context))
    table, gains = [], {}
    for age in _OLD:
        none, day, moved = (
            np.array([row["entropy"][f"{gap}/{age}"] for row in rows])
            for gap in (_NONE, _DAY, _MOVED)
        )
        gains[age] = none - day
        table.append(
            (
                age,
                f"{none.mean():.5f}",
                f"{day.mean():.5f}",
                f"{(day - none).mean():+.5f}",
                f"{(day - none).std(ddof=1):.5f}",
                f"{(moved - none).mean():+.5f}",
                *(f"{value:.5f}" for value in _TOY_GAP[age]),
                f"{_TOY_GAP[age][1] - _TOY_GAP[age][0]:+.5f}",
            )
        )
    return Outcome(
        columns=(
            "days old",
            "NE, no gap",
            "NE, gap of a day",
            "difference",
            "its std",
            "difference, windows moved",
            "specification's toy, no gap",
            "its gap of a day",
            "its difference",
        ),
        rows=table,
        checks=[
            Check(
                f"trained with a gap, NE is lower on embeddings {age} days old",
                float(gains[age].mean()) > 0,
                f"lower by {gains[age].mean():.5f}; "
                f"by seed {', '.join(f'{g:+.5f}' for g in gains[age])}",
            )
            for age in (4, 7)
        ],
        details={
            **_SETTING,
            "age": "0: all events before the day of the impression are seen",
            "gap of a day": "gap_hours 24 in training and in use: 3 days are 24 to 72 hours ago",
            "windows moved": "not gated: gap_hours 0, sliced a day before; windows stay whole",
            "users": context.size["users"],
            "runs": rows,
        },
    )


EXPERIMENTS = (
    Experiment(
        "dv365/staleness",
        "Slices of a long history beside the last 60 impressions, fresh and stale",
        "not in the paper; its freshness study, on a simulator",
        _staleness,
        {"users": 1500, "seeds": 3},
        {"users": 400},
    ),
    Experiment(
        "dv365/gap_training",
        "Trained with and without a gap of a day, on embeddings of several ages",
        "not in the paper; its distant-interest objective, on a simulator",
        _gap_training,
        {"users": 1500, "seeds": 3},
        {"users": 1000},
    ),
)
