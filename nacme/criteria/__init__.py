"""Selection criteria: the registry, the package's own, combinations, and what computes them."""

from nacme.criteria.registry import (
    Criterion,
    all_criteria,
    criterion,
    criterion_values,
    default_criteria,
    get_criterion,
    load_criteria_module,
    oriented_values,
    recorded_names,
    register,
)

__all__ = [
    "Criterion",
    "all_criteria",
    "criterion",
    "criterion_values",
    "default_criteria",
    "get_criterion",
    "load_criteria_module",
    "oriented_values",
    "recorded_names",
    "register",
]
