"""The status page at `/`. A script fills it with the numbers of `/status.json`, once a second.

The server computes all that the page shows; `static/format.js` says how numbers are written. The page takes nothing
from outside and runs nothing inline, and browsers are told to hold it to that (CSP level 3).
"""

from flask import Blueprint, Flask, Response, render_template

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def register(app: Flask) -> None:
    """Give `app` the page and its static files."""
    page = Blueprint("status_page", __name__, static_folder="static", template_folder="templates")

    @page.get("/")
    def status() -> Response:
        return Response(render_template("status.html"), headers={"Cache-Control": "no-store"}, mimetype="text/html")

    @page.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    app.register_blueprint(page)
