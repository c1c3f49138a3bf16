"""The explorer as a server on this machine alone."""

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource
from bokeh.server.server import Server
from tornado.ioloop import IOLoop

from aae_jax.arguments import InferenceError
from aae_jax.explorer.page import document
from aae_jax.explorer.run import read
from aae_jax.explorer.scene import Scene
from aae_jax.inference import Trained
from aae_jax.workdir import WorkdirError

ADDRESS = "127.0.0.1"
# Of what a page may send at once; a code takes a few thousand.
MOST_BYTES = 2**18
# The page loads from its own server alone. BokehJS makes functions of a page's code.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'"
)
_NOTE = "Images are decoded by the run's own program, on the machine where it was started."


def serve(folder: Path, port: int) -> None:
    """Serves a run's explorer until interrupted.

    Raises:
        WorkdirError: the port is taken; or what `aae_jax.explorer.run.read` raises.
    """
    model, scene = read(folder)
    # Compiled before the first drag.
    answer(model, _first(scene))
    running = start(model, scene, port)
    print(f"open http://{ADDRESS}:{port} (on this machine only; Ctrl-C ends it)", flush=True)
    try:
        IOLoop.current().start()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        running.stop()


def start(model: Trained, scene: Scene, port: int) -> Server:
    """A server that listens, for the current event loop.

    Only this machine reaches it, and of the pages open on this machine only its own: a page from
    elsewhere is refused by its origin, also where its name was made to lead here.

    Raises:
        WorkdirError: the port is taken.
    """
    logging.getLogger("bokeh").setLevel(logging.ERROR)
    try:
        server = Server(
            {"/": lambda page: fill(page, model, scene)},
            address=ADDRESS,
            port=port,
            allow_websocket_origin=[f"{ADDRESS}:{port}", f"localhost:{port}"],
            websocket_max_message_size=MOST_BYTES,
            http_server_kwargs={"max_body_size": MOST_BYTES},
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise WorkdirError(f"port {port} is taken; choose another with --port") from error
    server.start()
    return server


def fill(page: Document, model: Trained, scene: Scene) -> None:
    """Makes a new page the explorer, whose codes this process decodes."""
    wanted = ColumnDataSource(_first(scene), name="wanted")
    reply = ColumnDataSource({"number": [0], "values": [np.zeros(0, np.float32)]}, name="reply")

    def decode(attr: str, old: Any, new: Any) -> None:
        reply.data = answer(model, new)

    wanted.on_change("data", decode)
    document(scene, {"wanted": wanted, "reply": reply}, _NOTE, _POLICY, page)
    # Only what a root leads to is kept alike on both sides.
    page.roots[0].tags = [wanted, reply]


def answer(model: Trained, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to a page that wants a code decoded.

    Args:
        model: decodes it.
        wanted: "number" of the request, "style" [1, style_dim] and "label" [1, labels], where the
            decoder sees none [1, 0].

    Returns:
        The "number" and "values", the image's [h * w * c] in the data's units; no values for what
        cannot be decoded, which no page of ours asks for.
    """
    number = list(wanted.get("number", [0]))[:1]
    try:
        style = np.asarray(wanted["style"], np.float32)
        label = np.asarray(wanted["label"], np.float32)
        values = model.decode(style, label if label.size else None)[:1].ravel()
    except (InferenceError, KeyError, TypeError, ValueError):
        values = np.zeros(0, np.float32)
    return {"number": number, "values": [values]}


def _first(scene: Scene) -> dict[str, Any]:
    label = [] if scene.shown_labels is None else scene.shown_labels[0].tolist()
    return {"number": [0], "style": [scene.codes[0].tolist()], "label": [label]}
