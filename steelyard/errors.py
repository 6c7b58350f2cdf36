"""The error tree. A `UserError` is the user's to mend (exit code 2); everything else is a failed run (exit code 1).

    SteelyardError
    +-- UserError                  bad configuration, missing data, busy port: one line says expected, got, what to do
    +-- RunFailedError             the run itself could not go on: the reason stands in the manifest
    +-- RemoteFault                the peer broke the protocol: refused and logged, never our bug
    |   +-- RefusedError           the peer (or we) refused a request; carries the refusal's name
    |       +-- BadBundleError     bytes that arrived do not match their manifest
    +-- WaitTimeoutError           a bounded wait ran out; says what it waited for and how long
    +-- IllegalEventError          the round machine was handed an event that its state does not allow

The split between local faults (ours, the user's) and remote faults (a peer's) matters in a testbed of attackers: a
remote fault must never end the run.
"""

MAX_DETAIL = 500


class SteelyardError(Exception):
    """Base of every error that this project raises on purpose."""


class UserError(SteelyardError):
    """The user can mend this: the message says what was expected, what came and what to do."""


class RunFailedError(SteelyardError):
    """The run could not go on; the message is the reason that the manifest records."""


class RemoteFault(SteelyardError):  # noqa: N818 - 'fault' is the point: theirs, not ours
    """A peer broke the protocol."""


class RefusedError(RemoteFault):
    """A request was refused.

    Args:
        refusal: the refusal's name, one of the wire's `Refusal` values, e.g. "WRONG_ROUND".
        detail: one line for a person: what was expected and what came; cut to 500 characters, since it may quote the
            peer's own words, and stands in logs and replies.
    """

    def __init__(self, refusal: str, detail: str) -> None:
        self.refusal = refusal
        self.detail = detail if len(detail) <= MAX_DETAIL else f"{detail[: MAX_DETAIL - 3]}..."
        super().__init__(f"{refusal}: {self.detail}")


class BadBundleError(RefusedError):
    """Bytes that arrived do not match the manifest announced for them."""


class WaitTimeoutError(SteelyardError):
    """A bounded wait ran out."""


class IllegalEventError(SteelyardError):
    """The round machine's state does not allow this event; nothing was changed."""


def described(value: object) -> str:
    """What came where numbers were expected, for a message: an array's or a tensor's kind, else the value itself."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None:
        return f"{type(value).__name__} {value!r:.60}"
    what = "" if type(value).__name__ == "ndarray" else f"{type(value).__name__} of "
    return f"{what}shape {tuple(shape)} and {dtype}"
