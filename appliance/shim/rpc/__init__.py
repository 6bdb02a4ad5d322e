"""gRPC from the endpoint to the engine: HTTP/2 over one Unix socket, on the event loop itself.

Owns what gRPC adds to HTTP/2 for a caller (gRPC over HTTP2): calls with one answer or many,
deadlines, cancelling, statuses with their metadata, and when a reader has taken enough for more to
come. HTTP/2 itself is the library h2's. Refuses what the engine's protocol has no use for: several
requests in one call, compression, TLS, pushes.
"""

from appliance.shim.rpc.call import Call
from appliance.shim.rpc.channel import Channel
from appliance.shim.rpc.status import RpcError, Status

__all__ = ["Call", "Channel", "RpcError", "Status"]
