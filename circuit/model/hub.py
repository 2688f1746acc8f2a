"""What a model's folder or page on the hub lacks, in one sentence."""

from __future__ import annotations

from persona_circuits.circuit.errors import first_line

__all__ = ["hub_refusal"]


def hub_refusal(error: BaseException, name: str, revision: str | None) -> str | None:
    """What the hub refused and what to do about it; None where the hub had no part in it."""
    from huggingface_hub import constants, errors, get_token

    # The host library wraps the hub's errors in its own, with other words.
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(fault, kinds) for fault in chain)

    has_token = bool(get_token())
    if is_any(errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        grant = (
            f"the token in use has no access: ask for it at {page} with the token's account, and give a fine-grained "
            "token the right to read gated repositories"
            if has_token
            else f"accept its terms at {page}, make a read token at https://huggingface.co/settings/tokens, and set "
            "HF_TOKEN to it"
        )
        return f"model {name} is gated; {grant}"
    if is_any(errors.RevisionNotFoundError):
        return f"model {name} has no revision {revision!r} on the hub; give a branch, a tag or a commit of it"
    if is_any(errors.RepositoryNotFoundError):
        private = "or the token in use may not see it" if has_token else "or it is private: then set HF_TOKEN"
        return f"there is no model {name} on the hub, {private}; check the spelling, which is owner/name"
    if constants.HF_HUB_OFFLINE or is_any(errors.OfflineModeIsEnabled):
        return (
            f"model {name} is not, or not whole, in the local cache, and HF_HUB_OFFLINE forbids fetching it; run "
            f"'hf download {name}' where there is a network, unset HF_HUB_OFFLINE, or give a folder"
        )
    if is_any(errors.LocalEntryNotFoundError, ConnectionError):
        return (
            f"the hub cannot be reached and model {name} is not in the local cache; check the network "
            "(HTTPS_PROXY, HF_ENDPOINT), or give a folder"
        )
    if (refused := next((fault for fault in chain if isinstance(fault, errors.HfHubHTTPError)), None)) is not None:
        return f"the hub did not give model {name} ({first_line(refused)}); wait and try again"
    return None
