"""GET /livez, /readyz, /metrics: what machines ask about the server."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from serve.errors import ApiError
from serve.metrics import exposition
from serve.routes.responses import error_response, json_response
from serve.service import Service


class HealthRoutes:
    """Endpoints bound to their service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def livez(self, request: Request) -> Response:
        """This process answers."""
        return json_response(b'{"status":"alive"}')

    async def readyz(self, request: Request) -> Response:
        """200 while at least one engine is alive and the server is not draining, else 503."""
        if self._service.ready:
            return json_response(b'{"status":"ready"}')
        try:
            self._service.limits()
        except ApiError as error:
            return error_response(error)
        return json_response(b'{"status":"ready"}')

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format, summed over all processes."""
        body = await asyncio.to_thread(exposition)
        return Response(body, media_type="text/plain; version=0.0.4")
