"""gRPC from the endpoint to the engine: HTTP/2 over one Unix socket, on the event loop itself.

Owns what a caller of gRPC has to do (gRPC over HTTP2, RFC 9113, RFC 7541): calls with one answer or
many, deadlines, cancelling, flow control for each call, statuses with their metadata. Refuses what
the engine's protocol has no use for: several requests in one call, compression, TLS, pushes.
"""

from appliance.shim.rpc.call import Call
from appliance.shim.rpc.channel import Channel
from appliance.shim.rpc.status import RpcError, Status

__all__ = ["Call", "Channel", "RpcError", "Status"]
