"""Subsets of pools: reading, walking, budgets."""

from jsel.selection.run import select

__all__ = ["select"]
