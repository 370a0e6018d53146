"""`rlhf overoptimise`: how far a proxy can be optimised before the judge disagrees."""
