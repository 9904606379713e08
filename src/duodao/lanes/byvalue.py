"""Pickling by value, as the lanes call it."""

from __future__ import annotations

from duodao.pickling import by_value as dumps

__all__ = ["dumps"]
