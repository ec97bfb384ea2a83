"""Branch and bound: decide whether a specification holds over a whole region."""

from cerdeq.branch.verify import Verification, verify
