"""Simulators on other machines: Ray actors that hold environments, and their stand-ins on this machine."""
