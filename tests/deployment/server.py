"""A small server that classifies images, and can be slow, fail, limit the rate, and answer out of order.

A request holds images as JSON, and the answer is JSON. What it does next stands in its fields, which a test sets.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

SHAPE, CLASSES = (1, 4, 4), 3
WEIGHTS = np.random.default_rng(0).normal(size=(16, CLASSES)).round(2)


def scores_of(x):
    """The oracle: what the server answers, image by image, so that no batch changes a digit."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.stack([row @ WEIGHTS for row in flat]).astype(np.float32)


class Server(ThreadingHTTPServer):
    """:ivar asked: how often each image arrived, by its bytes. ``batches`` are the sizes of requests, in their order.
    :ivar most: the most requests at a time.
    :ivar script: for each of the next requests a status, or a function from the default answer to a body.
    :ivar delays: seconds that the next requests take.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.asked, self.batches, self.times = threading.Lock(), Counter(), [], []
        self.script, self.delays, self.busy, self.most, self.hold_after = [], [], 0, 0, None
        self.held = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server: Server = self.server
        x = np.array(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), np.float32)
        with server.lock:
            server.asked.update(image.tobytes() for image in x)
            server.batches.append(len(x))
            server.times.append(time.monotonic())
            server.busy += 1
            server.most = max(server.most, server.busy)
            hold = server.hold_after is not None and len(server.batches) > server.hold_after
            script = server.script.pop(0) if server.script else 200
            delay = server.delays.pop(0) if server.delays else 0
        try:
            if hold:
                server.held.set()
                time.sleep(60)
            time.sleep(delay)
            answer = json.dumps(scores_of(x).tolist())
            if callable(script):
                answer, script = script(answer), 200
            status, headers = script if isinstance(script, tuple) else (script, {})
        finally:
            with server.lock:
                server.busy -= 1
        body = answer.encode() if status == 200 else b"<html>busy</html>"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def client(url):
    """``predict`` as somebody would write it."""

    def predict(x):
        request = urllib.request.Request(url, data=json.dumps(x.tolist()).encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                body = reply.read().decode()
        except urllib.error.HTTPError as error:
            error.close()
            raise
        try:
            return json.loads(body)
        except ValueError:
            return body

    return predict
