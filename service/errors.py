"""The reasons to refuse a request, as one tree. `http/problems.py` maps each class to its HTTP status.

ServiceError
├── NotReady           no version is loaded yet, a search hangs, or the process is shutting down
├── Overloaded         too many requests are waiting
├── DeadlineExceeded   there was no answer within the request's timeout
├── AdminOff           no admin token is set
├── WritingOff         no write token is set
├── ItemNotFound       no item of the catalogue has the id
├── Unauthorized       the admin token or the write token is missing or wrong
└── ClientGone         the client has closed the connection
"""


class ServiceError(Exception):
    """Base of all errors for refused requests. The message is sent to the client, so it never contains input."""


class NotReady(ServiceError):
    """No version is loaded yet, a search hangs, or the process is shutting down."""


class Overloaded(ServiceError):
    """The queue is full, or a full batch is waiting and its oldest request has waited too long."""


class DeadlineExceeded(ServiceError):
    """There was no answer within the request's timeout."""


class AdminOff(ServiceError):
    """No admin token is set."""


class WritingOff(ServiceError):
    """No write token is set."""


class ItemNotFound(ServiceError):
    """No item of the catalogue has the id."""


class Unauthorized(ServiceError):
    """The admin token or the write token is missing or wrong."""


class ClientGone(ServiceError):
    """The client has closed the connection, so its request is not searched."""
