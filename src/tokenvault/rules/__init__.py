"""Rules of law and of card schemes as controls of a domain: "strong for large, light for small".

Each function returns arguments of `Domain`: `Domain(**psd2.contactless(), merchants={"M-1001"})`. `combined` puts
several together, the stricter of each. Amounts and counts are of one token: where a rule is about a customer or an
instrument, give it one token, or count outside.
"""

from tokenvault.rules import pboc, psd2
from tokenvault.rules.controls import Controls, combined

__all__ = ["Controls", "combined", "pboc", "psd2"]
