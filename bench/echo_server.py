"""The measure of all things: a bare grpc.aio server that answers a Deliver with what it got."""

import asyncio
import sys

import grpc

from mobd.v1 import bridge_pb2

METHOD = "/bench.Echo/Echo"


async def _echo(request: bridge_pb2.DeliverRequest, _context: object) -> bridge_pb2.DeliverRequest:
    return request


async def main() -> None:
    """Serve on a free loopback port, and print it."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        _echo,
        request_deserializer=bridge_pb2.DeliverRequest.FromString,
        response_serializer=bridge_pb2.DeliverRequest.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:] == ["uvloop"]:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
