"""OpenVLA-OFT implemented only with torch, transformers and safetensors.

from vla_rl.policies.openvla_oft import OpenVLAOFT
model = OpenVLAOFT.from_pretrained("path/to/checkpoint")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.pretrained import OpenVLAOFT as OpenVLAOFT

__all__ = ["OpenVLAOFT"]


def __getattr__(name: str) -> object:
    """Import the network on first access: some modules of this package are read where torch must not be imported."""
    if name == "OpenVLAOFT":
        from vla_rl.policies.openvla_oft.pretrained import OpenVLAOFT

        return OpenVLAOFT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
