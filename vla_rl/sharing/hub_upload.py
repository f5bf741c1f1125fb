"""Upload of a policy to the Hugging Face hub: one commit with the weights, what belongs to them, and a model card.

What a run needs to go on (optimizer state, replay, logs) stays here unless it is asked for. Everything that can be
refused is refused before an export starts. The token is read by the hub's own library and never passes through here.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.errors import RunFailureError, UserError, preflight
from vla_rl.evaluation.policy_source import PolicySource, find_policy
from vla_rl.export.policy_export import export
from vla_rl.policies.openvla_oft.adapter_config import BASE_FIELD
from vla_rl.policies.openvla_oft.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from vla_rl.policies.openvla_oft.hub import is_hub_id
from vla_rl.policies.openvla_oft.json_files import read_json
from vla_rl.policies.openvla_oft.section import exportable
from vla_rl.reporting.text import size as readable_size
from vla_rl.sharing.card import CARD_FILE, make_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SUFFIXES = (".json", ".safetensors", ".pt", ".model", ".txt", ".py")  # of the public layout, at the top of its folder
_OF_TRAINING = re.compile(r"(optimizer|scheduler|rng|training_args|trainer_state|replay|ring)([^a-z].*)?")
_LATER = "; nothing was uploaded"


@dataclass(frozen=True, slots=True)
class Request:
    """Request of a user: the policy, and its place on the hub."""

    target: str  # run, checkpoint of a run, or folder of weights
    repo: str  # user/name, or organisation/name
    revision: str | None = None  # branch; None: main
    private: bool = False
    license_name: str | None = None
    evaluations: tuple[Path, ...] = ()
    card: Path | None = None  # a file instead of the card that is written
    include: tuple[str, ...] = ()  # patterns of further files below the target
    profile: str = "auto"


@dataclass(frozen=True, slots=True)
class Upload:
    """Files of one commit."""

    card: str
    files: dict[str, Path]  # by their path in the repository; the card comes besides
    sizes: dict[str, int]  # bytes, by name, the card included
    left_out: tuple[str, ...]  # names in the folder of weights that stay here


def dry_run(request: Request) -> Upload:
    """Return what would be uploaded, without a network. A run is exported to find out, and the export removed.

    Raises:
        UserError: the request cannot work.
    """
    source = _checked(request)
    card = _card(request)
    with _folder_of_weights(request, source) as folder:
        return _upload(request, folder, card)


def push(request: Request, *, say: Callable[[str], None]) -> str:
    """Upload a policy.

    Args:
        request: what, and where.
        say: shows a line about the progress.

    Returns:
        The address of the commit.

    Raises:
        UserError: the request, the token or its rights do not allow it; nothing was uploaded.
        RunFailureError: the upload failed on its way; the repository is as it was.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    source = _checked(request)
    card = _card(request)
    api = HfApi(library_name="vla-rl")
    with _answers(request):
        _open_repository(api, request)
        _check_card(api, card)
        # Asks for permission to write there: such a small file is not sent before the commit.
        readme = CommitOperationAdd(CARD_FILE, card.encode())
        api.preupload_lfs_files(request.repo, additions=[readme], revision=request.revision)
    with _folder_of_weights(request, source) as folder:
        upload = _upload(request, folder, card)
        say(f"uploading {len(upload.sizes)} files, {readable_size(sum(upload.sizes.values()))}")
        operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(upload.files.items())]
        with _answers(request, is_on_its_way=True):
            commit = api.create_commit(
                request.repo,
                [*operations, CommitOperationAdd(CARD_FILE, card.encode())],
                commit_message="Upload a policy with vla-rl",
                revision=request.revision,
            )
    return str(commit.commit_url)


def _checked(request: Request) -> PolicySource:
    """Check what needs neither a network nor an export; return the policy.

    Raises:
        UserError: the request cannot work.
    """
    if not _REPO.fullmatch(request.repo) or len(request.repo) > 96 or re.search(r"--|\.\.", request.repo):
        raise UserError(
            f"REPO: {request.repo!r} cannot be the name of a repository; expected USER/NAME or ORGANISATION/NAME, of "
            "letters, digits, '-', '_' and '.', at most 96, without '--' and '..'"
        )
    if request.license_name is not None and not _LICENCE.fullmatch(request.license_name):
        raise UserError(
            f"--license: {request.license_name!r} is no identifier of a licence; expected one of the hub's, such as "
            "apache-2.0, mit or other"
        )
    if request.card is not None and not request.card.is_file():
        raise UserError(f"--card: {request.card} is no file; `vla-rl card {request.target} --out FILE` writes one")
    if not Path(request.target).expanduser().is_dir():
        raise UserError(
            f"{request.target} is no folder here; name a run, one of its checkpoints, or an export (`vla-rl export`)"
        )
    _asked_for(request)
    with preflight():
        source = find_policy(request.target, profile=request.profile)
        exportable(source.policy, location=source.location)
    if source.checkpoint is None:
        _refuse_local_base(Path(source.location).expanduser(), request)
    return source


def _refuse_local_base(folder: Path, request: Request) -> None:
    """Refuse an adapter that names a folder of this machine as its base, which nobody else can load it with.

    Raises:
        UserError: it does.
    """
    config = folder / ADAPTER_CONFIG
    base = str(read_json(config).get(BASE_FIELD)) if config.is_file() else None
    if base is not None and not is_hub_id(base):
        raise UserError(
            f"{config}: {BASE_FIELD} is {base!r}, a folder of this machine; expected the name of a checkpoint on the "
            f"hub, from which others can load it. Merge the adapter with `vla-rl export {shlex.quote(request.target)} "
            f"--out merged` and push `merged`, or write the base's name on the hub there{_LATER}"
        )


def _card(request: Request) -> str:
    if request.card is not None:
        return request.card.read_text(encoding="utf-8")
    return make_card(
        request.target,
        repo=request.repo,
        license_name=request.license_name,
        evaluations=request.evaluations,
        profile=request.profile,
    ).text


@contextmanager
def _folder_of_weights(request: Request, source: PolicySource) -> Iterator[Path]:
    """Yield the folder to upload: the target itself, or an export beside a run's checkpoints, removed at the end."""
    if source.checkpoint is None:
        yield Path(source.location).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix=".tmp-push-", dir=source.checkpoint.parents[1]) as aside:
        yield export(request.target, out=Path(aside) / "export", profile=request.profile).folder


def _upload(request: Request, folder: Path, card: str) -> Upload:
    """List the files of a folder of weights, and those that were asked for besides.

    Raises:
        UserError: a pattern matches nothing, or a file that is there already.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CARD_FILE)
    kept = [name for name in names if _is_of_the_policy(name)]
    files = {name: folder / name for name in kept}
    for name, path in _asked_for(request).items():
        if files.setdefault(name, path) != path or name == CARD_FILE:
            raise UserError(f"--include: the policy has a file {name} itself{_LATER}")
    folders = [f"{path.name}/" for path in folder.iterdir() if path.is_dir()]
    sizes = {name: path.stat().st_size for name, path in files.items()} | {CARD_FILE: len(card.encode())}
    return Upload(card, files, dict(sorted(sizes.items())), tuple(sorted({*names, *folders} - files.keys())))


def _asked_for(request: Request) -> dict[str, Path]:
    """Return the files that match the patterns, by their path below the target.

    Raises:
        UserError: a pattern matches nothing there.
    """
    below = Path(request.target).expanduser()
    asked: dict[str, Path] = {}
    for pattern in request.include:
        is_below = bool(pattern) and not pattern.startswith("/") and ".." not in Path(pattern).parts
        found = [path for path in sorted(below.glob(pattern)) if path.is_file()] if is_below else []
        if not found:
            raise UserError(f"--include: {pattern!r} matches no file below {below}{_LATER}")
        asked |= {path.relative_to(below).as_posix(): path for path in found}
    return asked


def _is_of_the_policy(name: str) -> bool:
    return name.endswith(_SUFFIXES) and not name.startswith(".") and not _OF_TRAINING.fullmatch(name)


def _open_repository(api: HfApi, request: Request) -> None:
    """Find or create the repository and the branch.

    Raises:
        UserError: there is no token, or one that may not write; or the repository is public and should not be.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise UserError(
            "no token of the Hugging Face hub was found: log in with `hf auth login`, or set HF_TOKEN to one of "
            f"https://huggingface.co/settings/tokens that may write{_LATER}"
        )
    access = api.whoami().get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise UserError(
            f"the token {access.get('displayName', '')!r} may only read: make one that may write on "
            f"https://huggingface.co/settings/tokens{_LATER}"
        )
    try:
        is_private = bool(api.model_info(request.repo).private)
    except RepositoryNotFoundError:
        api.create_repo(request.repo, private=request.private, exist_ok=True)
    else:
        if request.private and not is_private:
            raise UserError(
                f"--private: {request.repo} exists and is public; make it private on its settings page, or name another"
                f"{_LATER}"
            )
    if request.revision not in (None, "main"):
        api.create_branch(request.repo, branch=request.revision, exist_ok=True)


def _check_card(api: HfApi, card: str) -> None:
    """Ask the hub whether it takes the card, which it would otherwise say after the export.

    Raises:
        UserError: it does not.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined] # documented there

    answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json={"repoType": "model", "content": card})
    if answer.status_code == 400:
        raise UserError(f"the hub refuses the card: {_complaint(answer.text)}{_LATER}")
    hf_raise_for_status(answer)


def _complaint(text: str) -> str:
    """Return the messages in an answer of the hub, or its text if it has another form; one line."""
    with suppress(ValueError, TypeError, KeyError):
        text = "; ".join(one["message"] for one in json.loads(text)["errors"])
    return " ".join(text.split())


@contextmanager
def _answers(request: Request, *, is_on_its_way: bool = False) -> Iterator[None]:
    """Turn what the hub's library raises into an error of the user, or into a failure once the upload has begun."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # of its HTTP library

    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        _raise(_refusal(error.response.status_code, _first_line(error), request), error, is_on_its_way=is_on_its_way)
    except ValueError as error:  # of the library's own checks
        _raise(f"the hub's library refuses it: {' '.join(str(error).split())}", error, is_on_its_way=is_on_its_way)
    except (HTTPError, OSError, RuntimeError) as error:
        reason = f"the hub cannot be reached or does not answer as it should ({_first_line(error)})"
        advice = "try again where there is a network (HF_ENDPOINT and HF_HUB_OFFLINE change where the library looks)"
        _raise(f"{reason}: {advice}", error, is_on_its_way=is_on_its_way)


def _raise(reason: str, error: Exception, *, is_on_its_way: bool) -> None:
    if is_on_its_way:
        raise RunFailureError(f"{reason}; the repository is as it was") from error
    raise UserError(f"{reason}{_LATER}") from error


def _refusal(status: int, said: str, request: Request) -> str:
    """Return what a refusal of the hub means, and what to do."""
    match status:
        case 401:
            return f"the hub does not accept the token ({said}): log in with `hf auth login`, or set HF_TOKEN anew"
        case 403:
            return (
                f"the token may not write to {request.repo} ({said}): name a repository of your own, or make a token "
                "with that right on https://huggingface.co/settings/tokens"
            )
        case 404:
            return f"{request.repo}, or the branch {request.revision or 'main'!r} in it, is not there ({said})"
        case _:
            return f"the hub refused with status {status} ({said})"


def _first_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
