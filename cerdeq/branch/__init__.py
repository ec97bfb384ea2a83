"""Branch and bound: is a specification true over a whole region?"""

from cerdeq.branch.verify import Verification, verify

__all__ = ["Verification", "verify"]
