from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[Refusal]
    WRONG_PROTOCOL: _ClassVar[Refusal]
    UNKNOWN_CLIENT: _ClassVar[Refusal]
    ALREADY_LIVE: _ClassVar[Refusal]
    STALE_SESSION: _ClassVar[Refusal]
    WRONG_ROUND: _ClassVar[Refusal]
    LATE: _ClassVar[Refusal]
    NOT_PARTICIPATING: _ClassVar[Refusal]
    EQUIVOCATION: _ClassVar[Refusal]
    TOO_LARGE: _ClassVar[Refusal]
    TRUNCATED: _ClassVar[Refusal]
    BAD_DIGEST: _ClassVar[Refusal]
    BAD_LAYOUT: _ClassVar[Refusal]
    NOT_FINITE: _ClassVar[Refusal]
    BAD_TRANSFER: _ClassVar[Refusal]
    NEGATIVE_VARIANCE: _ClassVar[Refusal]
    STALE_PAIR: _ClassVar[Refusal]
    TOO_MANY_CALLS: _ClassVar[Refusal]
    BAD_CALL: _ClassVar[Refusal]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    WAITING: _ClassVar[Phase]
    OPEN: _ClassVar[Phase]
    CLOSED: _ClassVar[Phase]
    FINISHED: _ClassVar[Phase]
    FAILED: _ClassVar[Phase]
REFUSAL_UNSPECIFIED: Refusal
WRONG_PROTOCOL: Refusal
UNKNOWN_CLIENT: Refusal
ALREADY_LIVE: Refusal
STALE_SESSION: Refusal
WRONG_ROUND: Refusal
LATE: Refusal
NOT_PARTICIPATING: Refusal
EQUIVOCATION: Refusal
TOO_LARGE: Refusal
TRUNCATED: Refusal
BAD_DIGEST: Refusal
BAD_LAYOUT: Refusal
NOT_FINITE: Refusal
BAD_TRANSFER: Refusal
NEGATIVE_VARIANCE: Refusal
STALE_PAIR: Refusal
TOO_MANY_CALLS: Refusal
BAD_CALL: Refusal
PHASE_UNSPECIFIED: Phase
WAITING: Phase
OPEN: Phase
CLOSED: Phase
FINISHED: Phase
FAILED: Phase

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("tensors", "nbytes", "sha256")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    nbytes: int
    sha256: str
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., nbytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("refusal", "detail", "session", "client", "lease_s", "incarnation")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    detail: str
    session: str
    client: int
    lease_s: float
    incarnation: int
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., detail: _Optional[str] = ..., session: _Optional[str] = ..., client: _Optional[int] = ..., lease_s: _Optional[float] = ..., incarnation: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class RoundState(_message.Message):
    __slots__ = ("phase", "round", "participating", "submitted", "seconds_left", "incarnation", "reason")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARTICIPATING_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    round: int
    participating: bool
    submitted: bool
    seconds_left: float
    incarnation: int
    reason: str
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., round: _Optional[int] = ..., participating: _Optional[bool] = ..., submitted: _Optional[bool] = ..., seconds_left: _Optional[float] = ..., incarnation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("refusal", "detail")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    detail: str
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("session", "round")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("refusal", "detail", "transfer", "manifest")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    detail: str
    transfer: str
    manifest: Manifest
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., detail: _Optional[str] = ..., transfer: _Optional[str] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("session", "round", "manifest")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    manifest: Manifest
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("transfer", "receipt")
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    transfer: str
    receipt: Receipt
    def __init__(self, transfer: _Optional[str] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class ReceiptRequest(_message.Message):
    __slots__ = ("session", "transfer")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    session: str
    transfer: str
    def __init__(self, session: _Optional[str] = ..., transfer: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("refusal", "detail", "round", "sha256")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    detail: str
    round: int
    sha256: str
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., detail: _Optional[str] = ..., round: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PairRequest(_message.Message):
    __slots__ = ("backend", "device")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    backend: str
    device: str
    def __init__(self, backend: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class PairReply(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("epoch", "key", "value")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    key: str
    value: bytes
    def __init__(self, epoch: _Optional[int] = ..., key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class PutReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("epoch", "key", "wait_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    key: str
    wait_s: float
    def __init__(self, epoch: _Optional[int] = ..., key: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class GetReply(_message.Message):
    __slots__ = ("found", "value")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    found: bool
    value: bytes
    def __init__(self, found: _Optional[bool] = ..., value: _Optional[bytes] = ...) -> None: ...

class MoveRequest(_message.Message):
    __slots__ = ("epoch", "transfer", "to_server", "nbytes", "chunk_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    TO_SERVER_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    transfer: str
    to_server: bool
    nbytes: int
    chunk_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., transfer: _Optional[str] = ..., to_server: _Optional[bool] = ..., nbytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ...) -> None: ...

class MoveReply(_message.Message):
    __slots__ = ("nbytes",)
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    nbytes: int
    def __init__(self, nbytes: _Optional[int] = ...) -> None: ...
