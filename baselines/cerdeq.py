"""CerDEQ's networks by name; they are defined in `cerdeq.models`."""

from baselines.registry import register
from cerdeq import models

for _builder in (models.cerdeq, models.deqlate, models.deqscales, models.deqdense, models.deq7):
    register(_builder.__name__)(_builder)
