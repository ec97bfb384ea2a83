"""By what, and on which images, a trial was judged, in words: rows of one section have it alike."""

from harness.config.settings import BAB, EvaluationSettings
from harness.config.trial import TrialConfig


def judged_by(config: TrialConfig, certified: bool) -> str:
    """'ibp > crown-ibp > bab (60 s), first 1,000 test images'. certified: whether by harness.certify."""
    stages = [
        f"{stage} ({_budget(config.evaluation)})" if stage == BAB else stage for stage in config.evaluation.stages
    ]
    return f"{' > '.join(stages)}, {_images(config, certified)}"


def _budget(settings: EvaluationSettings) -> str:
    seconds, branches = settings.bab_seconds, settings.bab_branches
    limits = [
        *([] if seconds is None else [f"{seconds:g} s"]),
        *([] if branches is None else [f"{branches:,} branches"]),
    ]
    return " or ".join(limits)


def _images(config: TrialConfig, certified: bool) -> str:
    """Those held out of training, where there are some, a trial judges all."""
    held_out, wanted = config.validation_images, config.evaluation.test_images
    if held_out:
        whole = f"{held_out:,} held-out images"
        return f"first {wanted:,} of {whole}" if certified and wanted else whole
    return f"first {wanted:,} test images" if wanted else "all test images"
