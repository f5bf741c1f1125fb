"""OpenVLA-OFT, native: torch, transformers and safetensors alone."""
