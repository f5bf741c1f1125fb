"""Perturbations of LIBERO's tasks: cameras, lights, surfaces, pictures, robot, objects, instructions, actions.

One kind is one file here with one class, listed in `kinds`. `kind` has the interface. The numbers of a level are those
of LIBERO-plus where they are known (https://arxiv.org/abs/2510.13626 and the source of sylvestf/LIBERO-plus); the
others are ours, and a kind says which.
"""
