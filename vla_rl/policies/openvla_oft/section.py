"""OpenVLA-OFT in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from vla_rl.policies.kind import PolicyContext, PolicyPlan, PolicySection, StoredPolicy
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from vla_rl.policies.openvla_oft.config import RANDOM_7B, TINY
from vla_rl.policies.openvla_oft.hub import checkpoint_directory, is_hub_id
from vla_rl.policies.openvla_oft.profiles import ProfileName, resolve_profile
from vla_rl.section import PathText, Problem, RulesError, lost_path, path_from_here

if TYPE_CHECKING:
    from torch import nn

    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


class OpenVLAOFTSection(PolicySection):
    """OpenVLA-OFT with the discrete token head."""

    sees: ClassVar[Literal["frames", "state"]] = "frames"
    chunk_size: ClassVar[int | None] = 8
    has_layers: ClassVar[bool] = True
    reserved_names: ClassVar[tuple[str, ...]] = (TINY,)
    stored_as: ClassVar[str] = f"a config.json (a checkpoint directory) or an {ADAPTER_CONFIG} (a LoRA adapter)"

    name: Literal["openvla_oft"]
    checkpoint: PathText = Field(
        "tiny",
        description="tiny or random-7b (random weights, scaled down or of the real size), a checkpoint directory, or "
        "the name of one on the hub that is in the local cache",
    )
    profile: ProfileName = Field(
        "auto",
        description="who trained the checkpoint: prompt, normalisation and image details; auto reads it from the files",
    )
    statistics: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="key of the data set whose statistics scale the actions; default: the suite's, or the only one",
    )
    proprio: bool | None = Field(
        None,
        description="feed proprioception; null: as the checkpoint was trained (tiny is fed it, random-7b is not). A "
        "value that contradicts the checkpoint is refused",
    )
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="pixels per side; default: the checkpoint's"
    )
    lora: LoraSection | None = LoraSection()
    train_backbone: bool = Field(
        False, description="train all weights, without adapters, in float32; needs policy.lora=null"
    )
    train_embeddings: bool = Field(True, description="with train_backbone: also train the word embeddings")
    train_action_rows: bool = Field(True, description="train the 256 action rows of lm_head")
    train_proprio_projector: bool = Field(
        True, description="train the proprioception projector, if the checkpoint has one"
    )
    value_head: Literal["attention_pool", "last_prompt_token", "none"] = Field(
        "attention_pool",
        description="input of the critic: the pooled action positions, or the prompt's last token; none: no critic, "
        "which targets.name=group requires",
    )
    detach_value: bool = Field(True, description="the value loss sends no gradient into the network below the critic")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the frozen weights")
    gradient_checkpointing: bool = Field(False, description="less memory for activations, about a third more time")
    self_test: bool = Field(
        True,
        description="test a checkpoint before the start, and refuse it if it would fail silently",
    )

    @model_validator(mode="after")
    def _trains_adapters_or_backbone(self) -> Self:
        if self.train_backbone and self.lora is not None:
            problem = Problem(
                path="train_backbone",
                rule="adapters are for weights that stay as they are",
                found="true with policy.lora",
                allowed="false, or policy.lora=null",
            )
            raise RulesError([problem])
        return self

    def plan(self, context: PolicyContext) -> PolicyPlan:
        """Turn the section into plain values, from a checkpoint's small files and headers.

        Raises:
            ValueError: the checkpoint does not fit.
        """
        from vla_rl.policies.openvla_oft.plan import plan_openvla_oft

        return plan_openvla_oft(self, context)

    def check(self, policy: nn.Module, *, way_on: str = "policy.self_test=false") -> None:
        """Test a checkpoint for faults that fail silently; random weights pass. See the base."""
        from vla_rl.policies.openvla_oft.self_test import check_policy  # with transformers

        if self.self_test:
            check_policy(cast("OpenVLAOFTPolicy", policy), way_on=way_on)

    def found_from(self, started_in: Path | None) -> Self:
        """Return the section with its checkpoint where the run found it, if it leads nowhere from here; see base."""
        if self.checkpoint in (TINY, RANDOM_7B):
            return self
        found = path_from_here(self.checkpoint, started_in)
        path = Path(found).expanduser()
        if not (path.is_absolute() or path.exists() or is_hub_id(found)):
            raise lost_path("policy.checkpoint", self.checkpoint, started_in)
        return self.model_copy(update={"checkpoint": found})

    @classmethod
    def is_stored_in(cls, folder: Path) -> bool:
        """Return whether a folder holds a checkpoint or an adapter, intact or damaged."""
        from vla_rl.policies.openvla_oft.checkpoint_files import is_checkpoint

        return is_checkpoint(folder)

    @classmethod
    def stored(cls, target: str, *, profile: str, statistics: str | None, bf16: bool) -> StoredPolicy | None:
        """Return a public checkpoint, an export, an adapter or the tiny model; see the base."""
        from vla_rl.policies.openvla_oft.checkpoint_files import find_files, is_checkpoint

        if target == TINY:
            return StoredPolicy(section=cls._acting(TINY, profile, statistics, bf16=bf16), num_images=1)
        path = checkpoint_directory(target, download=True)
        if not is_checkpoint(path):
            return None
        files = find_files(path)
        checkpoint = f"./{path}" if str(path) in (TINY, RANDOM_7B) else str(path)
        resolved = resolve_profile(
            profile, has_l1_head=files.action_head is not None, recorded=files.profile, num_images=files.num_images
        )
        return StoredPolicy(
            section=cls._acting(checkpoint, profile, statistics, bf16=bf16),
            num_images=resolved.num_images,
            folder=path,
            files_in=files.folders,
        )

    def loaded_elsewhere(self, folder: str, *, suite: str) -> str:
        """Return the command of the original code; see the base."""
        from vla_rl.policies.openvla_oft.original_code import evaluation_command

        return evaluation_command(self, folder, suite=suite)

    @classmethod
    def _acting(cls, checkpoint: str, profile: str, statistics: str | None, *, bf16: bool) -> Self:
        """Return the section of a policy of which nothing is trained."""
        return cls.model_validate(
            {
                "name": "openvla_oft",
                "checkpoint": checkpoint,
                "profile": profile,
                "statistics": statistics,
                "lora": None,
                "train_action_rows": False,
                "train_proprio_projector": False,
                "dtype": "bfloat16" if bf16 else "float32",
            }
        )

    def evaluation_changes(self, *, self_test: bool, trained_statistics: str | None) -> Mapping[str, Any]:
        """Return the fields that an evaluation sets; in the suite of the training, actions are scaled as they were."""
        changes: dict[str, Any] = {} if self_test else {"self_test": False}
        if self.statistics is None and trained_statistics is not None:
            changes["statistics"] = trained_statistics
        return changes

    def scaled_by(self, statistics: str, *, location: str) -> Self:
        """Return the section with another key of statistics; see the base."""
        if self.statistics not in (None, statistics):
            raise ValueError(
                f"--statistics: found {statistics}, but {location} was trained with policy.statistics="
                f"{self.statistics}; leave the option out"
            )
        return self.model_copy(update={"statistics": statistics})


def exportable(section: PolicySection, *, location: str) -> OpenVLAOFTSection:
    """Return the section of a policy that has a layout other programs load.

    Args:
        section: of any kind of policy.
        location: where the policy was found, for the message.

    Raises:
        ValueError: it is of a kind that has none.
    """
    if not isinstance(section, OpenVLAOFTSection):
        raise ValueError(
            f"{location}: its policy is {section.name!r}; only 'openvla_oft' has a layout that other programs load"
        )
    return section
