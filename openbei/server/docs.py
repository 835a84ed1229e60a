"""/openapi.json, and /docs: one page made from the same document, which loads nothing from anywhere else."""

from collections.abc import Sequence
from importlib.resources import files

from starlette.responses import Response

from openbei import __version__
from openbei.server.negotiate import to_json
from openbei.server.openapi import document
from openbei.server.route import Call, Route

# The page is one file: a browser is told to take nothing else, and to talk to nobody but this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def routes(described: Sequence[Route]) -> tuple[Route, ...]:
    """The routes that describe the given ones and themselves."""

    async def openapi(_: Call, __: None) -> Response:
        return Response(text, media_type="application/json")

    async def page(_: Call, __: None) -> Response:
        return Response(html, media_type="text/html", headers={"content-security-policy": POLICY})

    own = (
        Route(
            path=("/openapi.json", "/api-doc/openapi.json"),
            handler=openapi,
            summary="This document",
            answer=dict,
            keyed=False,
        ),
        Route(path=("/docs",), handler=page, summary="The page about it", media_type="text/html", keyed=False),
    )
    text = to_json(document((*described, *own), __version__))
    template = files("openbei.server").joinpath("docs.html").read_bytes()
    html = template.replace(b"{{openapi}}", text.replace(b"</", b"<\\/"))
    return own
