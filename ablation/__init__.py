"""Deconstruct a diffusion model step by step and measure what each part is worth.

    import ablation
    frame = ablation.run(through="predict_original", scale="smoke", seeds=[0])

The functions are those of `ablation.api`, loaded when first asked for, so that `import ablation` costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["check", "frame", "plan", "report", "results", "run", "stages"]


class _Callable(ModuleType):
    """A module that can be called as the function of its name: `ablation.plan` and `ablation.report` are both."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from ablation import api

        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **named)


class _Package(ModuleType):
    """This package. Python binds a submodule to it after importing it; those that share a function's name become callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            from ablation import api

            return getattr(api, name)
        raise AttributeError(f"module 'ablation' has no attribute '{name}'")


sys.modules[__name__].__class__ = _Package
