"""The page to walk in the code space; what needs a real browser is marked so."""

import asyncio
import re
import shutil
import socket
import threading
from html.parser import HTMLParser
from urllib.request import Request, urlopen

import jax
import numpy as np
import pytest
from bokeh.client import pull_session
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.ioloop import IOLoop
from tornado.websocket import websocket_connect

from aae_jax import checkpoints, explorer
from aae_jax.data import description, preprocessing
from aae_jax.explorer import file, page, server
from aae_jax.explorer.network import TOLERANCE, network, size
from aae_jax.explorer.run import read
from aae_jax.explorer.scene import LEVELS, as_shown, outline_of, pick
from aae_jax.inference import InferenceError
from aae_jax.networks import ACTIVATIONS
from aae_jax.train import prepare
from aae_jax.workdir import DESCRIPTION, PREPROCESSING, WorkdirError, claim

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS = {"model.labels": 10, "style.prior": "gaussian(3, std=1.0)", "model.style_dim": 3}
PLANE = {"title": "Digits <in> a plane & more", "decoder.activation": "gelu"}
GIVEN = {
    **LABELS,
    "model.layout": "style_and_given_label",
    "decoder.batch_norm": True,
    "decoder.widths": (6, 5),
    "decoder.output": "linear",
    "data.preprocessing": "standardize_pixels",
}
INFERRED = {
    **LABELS,
    "model.layout": "style_and_inferred_label",
    "phases": ("reconstruction", "regularization", "classification"),
    "decoder.activation": "leaky_relu",
}
HEADS = {
    "model.labels": 4,
    "model.layout": "cluster_heads",
    "decoder.output": "bernoulli",
    "decoder.activation": "softplus",
}
FIXED = {"model.labels": 2, "model.layout": "cluster_heads", "cluster_heads.fixed": 3.0,
         "decoder.activation": "tanh"}  # fmt: skip
EVERY = {"plane": PLANE, "given": GIVEN, "inferred": INFERRED, "heads": HEADS, "fixed": FIXED}


@pytest.fixture(scope="module")
def saved(random_weights, narrow_config, tmp_path_factory):
    """Folders of runs on the digits with random weights: (**fields) -> folder."""

    def save(**fields):
        config = narrow_config(**fields)
        run = prepare(config)
        weights, stats = random_weights(run.experiment.model.init, 0.8)
        state = jax.eval_shape(run.experiment.init, jax.random.key(0)).replace(
            step=jax.numpy.int32(7),
            params=weights,
            batch_stats=stats,
            opt_states={},
            key=np.zeros(2),
        )
        folder = tmp_path_factory.mktemp("run")
        claim(folder, config)
        preprocessing.save(run.preprocessing, folder / PREPROCESSING)
        description.save(description.describe(run.splits), folder / DESCRIPTION)
        with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
            checkpoints.save(manager, 7, state)
            checkpoints.close(manager)
        return folder

    return save


@pytest.fixture(scope="module")
def shown(saved):
    """(name of `EVERY`) -> (folder, Trained, Scene)."""
    made = {}

    def show(name):
        if name not in made:
            folder = saved(**EVERY[name])
            made[name] = (folder, *read(folder))
        return made[name]

    return show


@pytest.fixture(scope="module")
def served(shown):
    """The port where the explorer of the run "given" is served, in another thread."""
    _, model, scene = shown("given")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ready, loops = threading.Event(), []

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())
        loops.append(IOLoop.current())
        running = server.start(model, scene, port)
        loops[0].add_callback(ready.set)
        loops[0].start()
        running.stop()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    yield port
    loops[0].add_callback(loops[0].stop)
    thread.join(60)


def test_a_document_can_be_filled(shown):
    from bokeh.document import Document

    doc = Document()
    server.fill(doc, *shown("given")[1:])


def test_a_session_decodes(served, shown):
    _, model, scene = shown("given")
    session = pull_session(url=f"http://127.0.0.1:{served}/")
    wanted, reply = (session.document.get_model_by_name(n) for n in ("wanted", "reply"))
    label = np.eye(10)[4]
    wanted.data = {"number": [5], "style": [[0.5, -1.0, 0.2]], "label": [label.tolist()]}
    session.force_roundtrip()
    assert list(reply.data["number"]) == [5]
    expected = model.decode(np.float32([[0.5, -1.0, 0.2]]), 4)
    np.testing.assert_array_equal(np.ravel(reply.data["values"][0]), expected.ravel())
