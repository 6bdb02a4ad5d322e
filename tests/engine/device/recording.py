"""A session that records as ONNX Runtime does, on any provider.

The runtime runs what it shall record once as it is, for the memory that it takes, and once more
while it records, at the end of which it replays (InferenceSession::Run and
CUDAExecutionProvider::OnRunEnd, 1.31): all that is computed, is computed twice.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from appliance.compiler.recording import GRAPH_ID, UNRECORDED


class Recording(ort.InferenceSession):
    """A session over another one.

    Attributes:
        recorded: the numbers that runs were recorded under.
        replays: how many runs were replayed.
    """

    def __init__(self) -> None:
        self.recorded: set[str] = set()
        self.replays = 0

    def over(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run_with_iobinding(
        self, iobinding: ort.IOBinding, run_options: ort.RunOptions | None = None
    ) -> None:
        assert run_options is not None
        number = run_options.get_run_config_entry(GRAPH_ID)
        self._session.run_with_iobinding(iobinding, run_options)
        if number == UNRECORDED:
            return
        if number in self.recorded:
            self.replays += 1
            return
        self.recorded.add(number)
        self._session.run_with_iobinding(iobinding, run_options)

    def __getattr__(self, name: str) -> Any:  # the session's own
        return getattr(self._session, name)
