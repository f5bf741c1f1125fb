"""Command of the original OpenVLA-OFT code for a policy in its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_rl.policies.openvla_oft.source import find_source

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection


def evaluation_command(section: OpenVLAOFTSection, folder: str, *, suite: str) -> str:
    """Return in Markdown how the original code evaluates the section's checkpoint, read from `folder`."""
    found = find_source(
        section.checkpoint,
        profile=section.profile,
        image_size=section.image_size,
        proprio=section.proprio,
        accept_l1_head=True,
    )
    return (
        "With the [original code](https://github.com/moojink/openvla-oft), whose layout the files have:\n\n```sh\n"
        f"python experiments/robot/libero/run_libero_eval.py --pretrained_checkpoint {folder} \\\n"
        f"  --task_suite_name {suite} --use_l1_regression {found.l1_head} --use_diffusion False \\\n"
        f"  --use_film False --num_images_in_input {found.profile.num_images} --use_proprio {found.proprio}\n```"
    )
