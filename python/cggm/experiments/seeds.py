"""The seeds that a command runs with."""

from __future__ import annotations

MOST_SEEDS = 100_000  # more would take years, and their jobs all the memory
LARGEST_SEED = 2**63 - 1  # what torch and NumPy both take


def check_seed(name: str, seed: int) -> None:
    """Refuse a seed that torch or NumPy cannot take; `name` is the option's name.

    >>> check_seed("seed", -1)
    Traceback (most recent call last):
    ValueError: seed must be a number from 0 to 9223372036854775807, got -1
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{name} must be a number from 0 to {LARGEST_SEED}, got {seed}")


def seed_range(first_seed: int, seeds: int) -> range:
    """So many seeds, from the first one on.

    Raises:
        ValueError: none, too many, or one that torch or NumPy cannot take.

    >>> seed_range(3, 2)
    range(3, 5)
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"seeds must be from 1 to {MOST_SEEDS}, got {seeds}")
    check_seed("first_seed", first_seed)
    check_seed("first_seed + seeds - 1", first_seed + seeds - 1)
    return range(first_seed, first_seed + seeds)
