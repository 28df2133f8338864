"""An S3 server (moto's) on loopback that tells how many bytes it sent of each object.

A process of its own, because GDAL holds the GIL while it opens a file. Prints its port; under
``/sent`` it answers with JSON ``{path: bytes}``, under ``/break?times=N`` it fails the next N
requests for objects, and POST to either starts counting anew.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


class Counted:
    """Counts what an application sends."""

    def __init__(self, app):
        self._app = app
        self._lock = threading.Lock()
        self._sent = Counter()
        self._to_fail = 0

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path in ("/sent", "/break"):
            return self._control(environ, start_response)
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        with self._lock:
            fails, self._to_fail = self._to_fail > 0, max(0, self._to_fail - 1)
        if fails:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self._app(environ, start_response))
        with self._lock:
            self._sent[path] += len(body)
        return [body]

    def _control(self, environ, start_response):
        with self._lock:
            if environ["PATH_INFO"] == "/break":
                self._to_fail = int(parse_qs(environ["QUERY_STRING"])["times"][0])
            body = json.dumps(self._sent).encode()
            if environ["REQUEST_METHOD"] == "POST":
                self._sent.clear()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
