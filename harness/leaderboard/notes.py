"""What a reader must know before comparing a section's numbers with others: the notes above its table."""

from itertools import starmap

import pandas as pd

from harness.leaderboard.rows import CHOSEN
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import describe_weak_attack


def section_notes(profile: str, trials: pd.DataFrame, is_full_size: bool) -> list[str]:
    """Return what a reader must know before comparing a section's numbers with any others."""
    is_elsewhere, held_out = trials["method"] == TRAINED_ELSEWHERE, trials["validation_images"]
    trained, is_held_out = trials[~is_elsewhere], trials["evaluation.split"] == "validation"
    tests = trials.loc[~is_held_out, "evaluation.test_images"]
    notes = []
    if not is_full_size:
        size = f"width {_span(trials['width'])}"
        if not trained.empty:
            size += f", train images {_span(trained['train_images'])}, epochs {_span(trained['train.epochs'])}"
        notes.append(f"Profile {profile}, {size}: not comparable with published numbers.")
    if trained["train_images"].notna().any():
        notes.append(f"Trained on {_span(trained['train_images'])} of the training images.")
    if tests.notna().any():
        notes.append(f"Errors are measured on {_span(tests)} of the test images, the first ones.")
    if is_held_out.any():
        notes.append(
            f"{'All' if is_held_out.all() else 'Some'} errors are measured on {_span(held_out[is_held_out])} "
            "validation images held out of training, not on test images."
        )
    notes += [*_weak_attack_notes(trials), *_search_notes(trials)]
    if is_elsewhere.any():
        notes.append("Networks trained elsewhere are evaluated here; `reported` columns have their papers' numbers.")
    if trials["problem"].notna().all():
        notes.append("No evaluation has finished yet.")
    return notes


def _span(values: pd.Series) -> str:
    texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
    return " or ".join(texts)


def _weak_attack_notes(trials: pd.DataFrame) -> list[str]:
    attacks = trials[["evaluation.attack_step", "evaluation.attack_steps"]].drop_duplicates()
    texts = filter(None, starmap(describe_weak_attack, attacks.itertuples(index=False)))
    return [f"In {'all' if len(attacks) == 1 else 'some'} rows, {text}." for text in texts]


def _search_notes(trials: pd.DataFrame) -> list[str]:
    chosen = trials.drop_duplicates("row")[CHOSEN] if CHOSEN in trials else pd.Series(dtype=object)
    which = "All" if chosen.notna().all() else "Some"
    return [
        f"{which} rows' settings were chosen by a search ({text}), then trained anew."
        for text in chosen.dropna().unique()
    ]
