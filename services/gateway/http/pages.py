"""The two pages that need no key: what this is, and the operations of the API. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
code,pre{font:14px/1.5 ui-monospace,monospace;background:#f3f3f3}
code{padding:.1em .3em}pre{padding:1rem;overflow-x:auto}
h2{margin-top:2rem}dt{margin-top:1rem}dd{margin-left:1.5rem}
@media (prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}code,pre{background:#262626}a{color:#8ab4f8}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"
}

_INDEX = """
<h1>BenchGen Eval</h1>
<p>This server measures how well models do tasks: versioned environments, durable runs, honest numbers.</p>
<ul>
<li><a href="/docs">The HTTP API</a>, and the same for programs: <a href="/openapi.json">/openapi.json</a></li>
<li>gRPC has its own port, with server reflection: <code>benchgen.eval.v1</code></li>
</ul>
<p>Everything under <code>/api/</code> needs an API key:</p>
<pre>curl -H "Authorization: Bearer $BENCHGEN_API_KEY" {base}api/v1/environments</pre>
"""


def _page(title: str, body: str) -> HTMLResponse:
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
    return HTMLResponse(document, headers=_HEADERS)


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    """What this is, and where to go on."""
    return _page("BenchGen Eval", _INDEX.replace("{base}", escape(str(request.base_url))))


@router.get("/docs")
async def operations(request: Request) -> HTMLResponse:
    """Every operation of the API, from the OpenAPI document."""
    document = request.app.openapi()
    parts = [
        f"<h1>{escape(document['info']['title'])}</h1>",
        f"<p>{escape(document['info']['description'])}</p>",
        '<p>All details are in <a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'].capitalize())}</h2><p>{escape(tag['description'])}</p><dl>")
        for path, methods in document["paths"].items():
            parts += [
                _operation(method, path, operation)
                for method, operation in methods.items()
                if tag["name"] in operation["tags"]
            ]
        parts.append("</dl>")
    return _page("BenchGen Eval: HTTP API", "".join(parts))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(parameter['name'])}</code> ({escape(parameter['in'])})"
        f" {escape(parameter.get('description', ''))}</li>"
        for parameter in operation.get("parameters", [])
    )
    return (
        f"<dt><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</dt>"
        f"<dd>{escape(operation.get('description', ''))}<ul>{parameters}</ul></dd>"
    )
