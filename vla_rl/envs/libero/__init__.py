"""LIBERO behind the environment protocol: `from vla_rl.envs.libero import LiberoEnv`.

Importing this package imports no simulator; constructing `LiberoEnv` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import LiberoEnv

__all__ = ["LiberoEnv"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vla_rl.envs.libero.env import LiberoEnv

    return LiberoEnv
