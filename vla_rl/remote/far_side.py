"""Check of the far side before anything starts: every machine answers, knows the token, and simulates the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from vla_rl.errors import UserError
from vla_rl.ipc.parent_death import end_with_parent, shielded
from vla_rl.remote.connection import TOKEN_FILE, HostedActor, answers, status_of_call, token
from vla_rl.remote.host import Place
from vla_rl.remote.identity import OwnIdentity, differences, identity_here

START_RAY = "RAY_AUTH_MODE=token ray start --head --block --include-dashboard=false --disable-usage-stats"
DESCRIBE_S = 120.0  # for a machine to start two processes and to import this program
_REFUSED = "UNAUTHENTICATED"  # gRPC's status


@dataclass(frozen=True, slots=True)
class FarPlace:
    """A machine that was asked."""

    address: str
    place: Place


def check_far_side(addresses: Sequence[str], identity: OwnIdentity) -> tuple[FarPlace, ...]:
    """Ask every machine of `rollout.remote` who it is.

    Args:
        addresses: host:port of Ray heads' client servers.
        identity: of the environment.

    Raises:
        UserError: names every machine that is no use, and what to do.
    """
    distinct = tuple(dict.fromkeys(addresses))
    problems = {address: problem for address in distinct if (problem := _at_the_door(address))}
    places: list[FarPlace] = []
    here = identity_here(identity)
    for address in distinct:
        if address in problems:
            continue
        found = _describe(address, identity)
        if isinstance(found, Place):
            places.append(FarPlace(address, found))
            if problem := _unfit(found, here):
                problems[address] = problem
        else:
            problems[address] = found
    if problems:
        raise UserError("\n".join(f"rollout.remote: {address} {problem}" for address, problem in problems.items()))
    return tuple(places)


def _at_the_door(address: str) -> str:
    """Return why there is no way into a machine's Ray; empty if there is one, and only for those with the token."""
    if reason := answers(address):
        return (
            f"cannot be reached: {reason}. Fix: start Ray there ({START_RAY}), or correct the address; the port is "
            "that of Ray's client server, 10001 unless --ray-client-server-port says otherwise"
        )
    if not token():
        return (
            "needs Ray's token, and there is none here. Fix: on one machine run ray get-auth-token --generate, and "
            f"copy the file {TOKEN_FILE} to the other one"
        )
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # Ray itself holds the certificates
        return ""
    status = status_of_call(address, token())
    if status == _REFUSED:
        return (
            f"refuses the token that is here. Fix: copy {TOKEN_FILE} from there, unset RAY_AUTH_TOKEN, and start Ray "
            "there again if its token has changed"
        )
    if status in ("UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"):
        return (
            f"answers, but not as Ray's client server ({status}). Fix: name its port, 10001 unless "
            "--ray-client-server-port says otherwise"
        )
    if status_of_call(address, "") != _REFUSED:
        return (
            "runs the commands of everyone who reaches it, because its Ray asks for no token. Fix: stop it, and start "
            f"it with {START_RAY}"
        )
    return ""


def _unfit(place: Place, here: dict[str, str]) -> str:
    """Return why episodes of a machine would not be those of this one; empty if they would."""
    different = differences(here, place.identity)
    if not different:
        return ""
    return (
        f"({place.host}) simulates something else: {'; '.join(different)}. Fix: install the same there, from the same "
        "commit, with scripts/setup, and start Ray again"
    )


def _describe(address: str, identity: OwnIdentity) -> Place | str:
    """Have a machine describe itself, in a process of its own: Ray's threads have no place in a learner.

    Returns:
        The machine, or why it did not.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_ask, args=(address, identity, theirs), name="remote-check", daemon=True)
    with shielded():
        process.start()
    theirs.close()
    try:
        if not ours.poll(DESCRIBE_S):
            return f"did not describe itself within {DESCRIBE_S:.0f} s. Fix: start its Ray again"
        answer: Place | str = ours.recv()
    except EOFError:
        return "could not be asked: the process that did so has died. Fix: try again"
    else:
        return answer
    finally:
        process.kill()
        process.join()
        ours.close()


def _ask(address: str, identity: OwnIdentity, answer: Connection) -> None:
    """Ask a machine who it is. The target of the process."""
    end_with_parent(signal.SIGKILL)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a device; Ray writes to the terminal
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        actor = HostedActor(address, seconds=20.0)
        place = actor.call("describe", (identity,), seconds=DESCRIBE_S)
        actor.end()
        answer.send(place)
    except Exception as error:  # noqa: BLE001 - whatever Ray raises is shown
        answer.send(_why(error))


def _why(error: Exception) -> str:
    """Return the reason of a failure in one sentence, with a fix."""
    text = str(error)
    if "No module named 'vla_rl'" in text:
        return "has no vla_rl. Fix: install it there as here, and start Ray from that environment"
    if "ersion mismatch" in text:
        return f"has another Ray or Python: {' '.join(text.split())}. Fix: install the same there, and start Ray again"
    said = " ".join(text.split())[-300:]
    return f"does not answer as it should: {type(error).__name__}: {said}. Fix: start its Ray again"
