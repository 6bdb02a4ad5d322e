"""HTTP/2 as the library `h2` has it, set up for a client of gRPC on one machine.

Owns the settings, and two things that the library does otherwise: it ends a connection when the
other side says that it goes away, though calls that were taken on go on (RFC 9113 section 6.8), and
it remembers as many ended streams as would take megabytes.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import (
    ConnectionInputs,
    ConnectionState,
    H2Connection,
    H2ConnectionStateMachine,
)
from h2.settings import SettingCodes, Settings

MOST_WINDOW = 2**31 - 1
_CONFIGURATION = H2Configuration(
    client_side=True,
    # Ours are all alike, and of the engine's only those with a meaning are looked at.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
)


class _Transitions(H2ConnectionStateMachine):
    """A server that goes away still answers what it has taken on."""

    _transitions = H2ConnectionStateMachine._transitions | {
        (state, ConnectionInputs.RECV_GOAWAY): (None, state)
        for state in (ConnectionState.IDLE, ConnectionState.CLIENT_OPEN)
    }


class Http2(H2Connection):
    """The client's side; streams may have `window` bytes on their way."""

    MAX_CLOSED_STREAMS = 4096
    """Of so many it is known how they ended, for headers that come after a reset of ours."""

    def __init__(self, window: int) -> None:
        super().__init__(_CONFIGURATION)
        self.state_machine = _Transitions()
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: window,
                SettingCodes.MAX_HEADER_LIST_SIZE: self.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self.initiate_connection()
        # Streams bound what may wait each by itself: together they are not to hold each other up.
        self.increment_flow_control_window(MOST_WINDOW - self.inbound_flow_control_window)

    def clear_outbound_data_buffer(self) -> None:
        """What was said before the server went away is sent all the same."""
