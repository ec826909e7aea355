"""The hub's API, and what it raises as one message that says what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from rankdrift.errors import UserError

if TYPE_CHECKING:  # it takes a second to import
    from huggingface_hub import HfApi

LOG_IN = "log in (HF_TOKEN, or 'hf auth login')"
TOO_MUCH_CHANGED = 412
"""HTTP status of a commit whose parent is not the newest any more."""
REFUSED = (401, 403)


def hub() -> HfApi:
    """Return the API of the hub that ``HF_ENDPOINT`` names, or of huggingface.co."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def require_token(name: str) -> None:
    """Raise UserError unless somebody is logged in; nothing is asked of the hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"{name}: an upload needs a token that may write; {LOG_IN}")


@contextlib.contextmanager
def answers(name: str) -> Iterator[None]:
    """Turn what the hub's library raises of a repository into a UserError; errors of the disk pass."""
    from huggingface_hub.errors import HfHubHTTPError

    # what its client raises without an answer: which library that is of changes
    no_answer = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, no_answer) as error:
        if _is_of_the_disk(error):
            raise
        raise UserError(f"{name}: {_reason(error)}") from None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the operating system said it; the library's own errors have no number."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def _reason(error: Exception) -> str:
    """Return what is wrong and what to do."""
    from huggingface_hub import errors

    endpoint = hub().endpoint
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why a large file was not sent
    told: list[tuple[type[Exception], str]] = [  # the first that fits
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"),
        (errors.HFValidationError, "is no name of a repository; give OWNER/NAME"),
        (errors.GatedRepoError, f"its owner lets in who asks; accept the terms on its page, and {LOG_IN}"),
        (
            errors.RepositoryNotFoundError,
            f"no such repository at {endpoint}, or a private one; check the name, or {LOG_IN}",
        ),
        (errors.RevisionNotFoundError, "has no such revision; give a branch, a tag or a commit that it has"),
    ]
    for kind, reason in told:
        if isinstance(error, kind):
            return reason
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in REFUSED:
        return f"{endpoint} refuses the token ({status}); {LOG_IN} with one that may write there"
    if status == TOO_MUCH_CHANGED:
        return "was changed by somebody else meanwhile; look at it, and run this again"
    line = " ".join(str(error).split())
    return f"{endpoint} gives no answer of use ({type(error).__name__}: {line}); see the network, HF_ENDPOINT"
