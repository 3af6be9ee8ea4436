"""What a request can be refused for, as one tree. `problems.py` maps each to its HTTP status.

ServiceError
├── NotReady           no version is loaded yet, searches do not end, or the process is about to
├── Overloaded         the queue is full
├── DeadlineExceeded   no answer within the request's timeout
├── AdminOff           no admin token is set
├── Unauthorized       the admin token is missing or wrong
└── ClientGone         nobody waits for the answer any more
"""


class ServiceError(Exception):
    """Base of everything the service refuses. The message goes to the client: it never has input in it."""


class NotReady(ServiceError):
    """No version is loaded yet, searches do not end, or the process is about to."""


class Overloaded(ServiceError):
    """The queue is full."""


class DeadlineExceeded(ServiceError):
    """No answer within the request's timeout."""


class AdminOff(ServiceError):
    """No admin token is set."""


class Unauthorized(ServiceError):
    """The admin token is missing or wrong."""


class ClientGone(ServiceError):
    """Nobody waits for the answer any more, and it is not worth its search."""
