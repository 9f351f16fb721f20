"""Deconstruct a diffusion model step by step and measure what each part is worth."""

from __future__ import annotations

from typing import Any

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    """Load the Python interface when one of its functions is first asked for, so that `import ablation` costs nothing."""
    if name in __all__:
        from ablation import api

        return getattr(api, name)
    raise AttributeError(f"module 'ablation' has no attribute '{name}'")
