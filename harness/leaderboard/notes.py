"""What a reader must know before comparing a section's numbers with others: the notes above its table."""

import pandas as pd

from harness.leaderboard.evaluations import CHOSEN, describe_images
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import describe_weak_attack


def section_notes(profile: str, trials: pd.DataFrame, is_full_size: bool) -> list[str]:
    """Return what a reader must know before comparing a section's numbers with any others."""
    is_elsewhere = trials["method"] == TRAINED_ELSEWHERE
    trained, first = trials[~is_elsewhere], trials.iloc[0]
    notes = []
    if not is_full_size:
        size = f"width {_span(trials['width'])}"
        if not trained.empty:
            size += f", train images {_span(trained['train_images'])}, epochs {_span(trained['train.epochs'])}"
        notes.append(f"Profile {profile}, {size}: not comparable with published numbers.")
    if trained["train_images"].notna().any():
        notes.append(f"Trained on {_span(trained['train_images'])} of the training images.")
    evaluation = first["evaluation_settings"]
    if evaluation.split == "validation":
        notes.append(f"Errors are measured on {describe_images(evaluation, first['held_out'])}, not on test images.")
    elif evaluation.test_images is not None:
        notes.append(f"Errors are measured on {evaluation.test_images:,} of the test images, the first ones.")
    if weak := describe_weak_attack(evaluation.attack_step, evaluation.attack_steps):
        notes.append(f"{weak[0].upper()}{weak[1:]}.")
    notes += _search_notes(trials)
    if is_elsewhere.any():
        notes.append("Networks trained elsewhere are evaluated here; `reported` columns have their papers' numbers.")
    if trials["problem"].notna().all():
        notes.append("No evaluation has finished yet.")
    return notes


def _span(values: pd.Series) -> str:
    texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
    return " or ".join(texts)


def _search_notes(trials: pd.DataFrame) -> list[str]:
    chosen = trials.drop_duplicates("row")[CHOSEN] if CHOSEN in trials else pd.Series(dtype=object)
    which = "All" if chosen.notna().all() else "Some"
    return [
        f"{which} rows' settings were chosen by a search ({text}), then trained anew."
        for text in chosen.dropna().unique()
    ]
