"""The page to walk in the code space; what needs a real browser is marked so."""

import asyncio
import json
import re
import shutil
import socket
import threading
from html.parser import HTMLParser
from urllib.request import Request, urlopen

import jax
import numpy as np
import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.ioloop import IOLoop
from tornado.websocket import websocket_connect

from aae_jax import checkpoints, explorer
from aae_jax.data import description, load, preprocessing
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
        stats = jax.tree.map(lambda x: x + 0.5, stats)
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


# What a page shows


@pytest.mark.parametrize("name", EVERY)
def test_a_scene_is_what_the_model_says_of_the_test_images(shown, name):
    _, model, scene = shown(name)
    test = load("digits").test
    np.testing.assert_array_equal(scene.labels, test.label)
    np.testing.assert_array_equal(scene.codes, model.encode(test.image).style)
    np.testing.assert_allclose(scene.pictures, test.image[scene.pictured] / 255, atol=1e-6)
    assert set(test.label[scene.pictured]) == set(range(10)), "some of each label to click on"
    assert scene.label_name == ("Cluster" if name in ("heads", "fixed") else "Label") or (
        name == "plane"
    )
    if name == "plane":
        assert scene.shown_labels is None
    elif name == "given":
        np.testing.assert_array_equal(scene.shown_labels, np.eye(10)[test.label])
    else:
        np.testing.assert_array_equal(scene.shown_labels, model.encode(test.image).label)
    middle = scene.percentiles[len(LEVELS) // 2]
    np.testing.assert_allclose(middle, 0, atol=0.1)
    assert scene.follows_prior and (scene.outline is None) == (scene.codes.shape[1] != 2)


def test_without_a_prior_the_codes_set_the_scale(saved):
    folder = saved(**{"phases": ("reconstruction",), "style.divergence": ""})
    scene = read(folder)[1]
    assert not scene.follows_prior and scene.outline is None
    np.testing.assert_array_equal(scene.samples, scene.codes)


@pytest.mark.parametrize(
    ("shape", "fields", "words"),
    [
        ((12,), {}, r"shows images .* this run's examples are \[12\]"),
        ((4, 4, 2), {}, r"examples are \[4, 4, 2\]"),
        ((4, 4, 1), {"model.style_dim": 1, "style.prior": "gaussian(1, std=1.0)"}, "one dimension"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(saved, tmp_path, shape, fields, words):
    x = np.random.default_rng(0).random((200, *shape)).astype(np.float32)
    np.savez(
        tmp_path / "set.npz",
        x_train=x,
        y_train=np.arange(200) % 2,
        x_test=x,
        y_test=np.arange(200) % 2,
    )
    folder = saved(**{"data.source": f"npz:{tmp_path}/set.npz", "data.validation": 0, **fields})
    with pytest.raises(InferenceError, match=words) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_floats_are_shown_from_their_smallest_to_their_largest():
    np.testing.assert_array_equal(as_shown(np.float32([-3, 1, 5]), -3.0, 5.0), [0, 0.5, 1])
    np.testing.assert_array_equal(as_shown(np.float32([2, 2]), 2.0, 2.0), [0, 0])


def test_as_many_images_of_each_label_are_picked():
    labels = np.array([1, 1, 1, 1, 0, 2, 0, 0, -1])
    assert pick(labels, 6).tolist() == [8, 4, 6, 0, 1, 5]
    assert sorted(pick(labels, 100)) == list(range(9))


def test_an_outline_holds_its_share():
    x, noise = np.random.default_rng(1).normal(size=(2, 100_000)).astype(np.float32)
    samples = np.stack([x, x**2 + 0.5 * noise], axis=1)
    outline = outline_of(samples)
    inside = outline.density >= outline.level
    columns, rows = (
        np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
        for centers, values in zip((outline.x, outline.y), samples.T, strict=True)
    )
    np.testing.assert_allclose(inside[rows, columns].mean(), 0.95, atol=0.005)


def test_an_outline_of_a_gaussian_has_its_width():
    samples = np.random.default_rng(1).normal(size=(100_000, 2)) * [1.0, 3.0]
    outline = outline_of(samples.astype(np.float32))
    inside = outline.density >= outline.level
    # 95 % of a Gaussian lies within sqrt(-2 ln 0.05) = 2.45 deviations.
    np.testing.assert_allclose(np.ptp(outline.x[inside.any(axis=0)]), 4.9, rtol=0.1)
    np.testing.assert_allclose(np.ptp(outline.y[inside.any(axis=1)]), 14.7, rtol=0.1)


def test_labels_differ_in_colour_or_shape():
    looks = {(page.label_color(label), page.label_marker(label)) for label in range(70)}
    assert len(looks) == 70
    assert len({page.label_color(label) for label in range(-1, 10)}) == 11


def test_pixels_are_those_of_the_image():
    image = np.random.default_rng(2).random((3, 4, 3)).astype(np.float32)
    pixels = page.rgba(image)
    assert pixels.shape == (3, 4)
    for channel in range(3):
        np.testing.assert_array_equal(
            pixels >> 8 * channel & 255, np.rint(255 * image[..., channel])
        )
    assert (pixels >> 24 == 255).all()
    grey = page.rgba(image[..., :1])
    np.testing.assert_array_equal(grey & 255, grey >> 16 & 255)


# The decoder in a page


def by_hand(held, style, label):
    """What `explorer.mjs` computes, in float64."""
    if held.heads is not None:
        x = style + label @ held.heads
    else:
        x = style if label is None else np.concatenate([style, label], axis=1)
    for number, layer in enumerate(held.layers):
        x = x @ (layer.weights * layer.scale.astype(np.float64)) + layer.bias
        if number < len(held.layers) - 1:
            x = np.asarray(ACTIVATIONS[held.activation](x))
    x = 1 / (1 + np.exp(-x)) if held.output == "sigmoid" else x
    x = x * held.scale + held.shift
    return np.clip(x, 0, 1) if held.clipped else x


def some_codes(scene):
    rows = np.arange(0, len(scene.codes), 40)
    return scene.codes[rows], None if scene.shown_labels is None else scene.shown_labels[rows]


@pytest.mark.parametrize("name", EVERY)
def test_a_pages_decoder_is_the_runs(shown, name):
    _, model, scene = shown(name)
    held = network(model)
    style, label = some_codes(scene)
    expected = model.decode(style, label).reshape(len(style), -1)
    assert expected.std(axis=0).max() > 0.01, "images differ, so that a wrong code would be seen"
    np.testing.assert_allclose(by_hand(held, style, label), expected, atol=TOLERANCE / 4)
    assert size(held) == sum(2 * x.weights.size + 8 * x.bias.size for x in held.layers)


def test_a_convolutional_decoder_is_refused_for_a_file(saved):
    folder = saved(**{"decoder.channels": 2})
    with pytest.raises(InferenceError, match=r"decoder\.channels is 2.*--mode explore shows it"):
        network(read(folder)[0])


class Loads(HTMLParser):
    """Collects what a page would load."""

    def __init__(self, html):
        super().__init__()
        self.found, self.policy, self.title = [], None, ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.found += [attributes[name] for name in ("src", "href") if name in attributes]
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]


def test_a_file_loads_nothing_and_names_its_run(shown, capsys):
    folder = shown("plane")[0]
    assert explorer.show(folder, None) == 0
    html = (folder / explorer.PAGE).read_text()
    loads = Loads(html)
    assert loads.found == []
    assert loads.policy.startswith("default-src 'none';") and "http" not in loads.policy
    assert "Digits &lt;in&gt; a plane &amp; more" in html and "Digits <in>" not in html
    assert f"<b>{folder.name}</b>" in html
    assert re.search(
        r"explorer.html: \d+\.\d MB, decoder's weights \d\.\d MB", capsys.readouterr().out
    )


def test_what_goes_wrong_is_one_line(saved, tmp_path, capsys, monkeypatch):
    assert explorer.show(tmp_path, None) == 1
    assert "holds no run" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        explorer.show(tmp_path, 5006)
    assert capsys.readouterr().err == (
        "aae_jax: --mode explore and --mode page need Bokeh: pip install 'aae_jax[explore]'\n"
    )


# The server


def test_an_answer_is_the_models(shown):
    _, model, scene = shown("heads")
    style, label = some_codes(scene)
    wanted = {"number": [3], "style": [style[0].tolist()], "label": [label[0].tolist()]}
    reply = server.answer(model, wanted)
    assert reply["number"] == [3]
    np.testing.assert_array_equal(reply["values"][0], model.decode(style[:1], label[:1]).ravel())


@pytest.mark.parametrize(
    "changes",
    [
        {"style": [[1.0]]},
        {"style": [["x", 2]]},
        {"style": [[np.nan, 0.0]]},
        {"style": None},
        {"label": [[5, 5, 5, 5]]},
        {"label": [[]]},
    ],
)
def test_what_cannot_be_decoded_gets_no_values(shown, changes):
    _, model, _ = shown("heads")
    wanted = {"number": [1], "style": [[0.0, 0.0]], "label": [[1.0, 0, 0, 0]], **changes}
    assert len(server.answer(model, wanted)["values"][0]) == 0


def test_a_server_is_on_this_machine_alone(served):
    with socket.create_connection(("127.0.0.1", served), timeout=30):
        pass
    for other in ("127.0.0.2", "::1"):
        with pytest.raises(OSError):
            socket.create_connection((other, served), timeout=30)


@pytest.fixture
def token(served):
    """What a page is given to open its websocket with."""
    html = urlopen(f"http://127.0.0.1:{served}/", timeout=60).read().decode()
    return re.search(r'"token":"([^"]+)"', html)[1]


def handshake(port, token, origin):
    """The status of a websocket's handshake."""

    async def open_socket():
        request = HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers={"Origin": origin})
        try:
            await websocket_connect(request, subprotocols=["bokeh", token])
        except HTTPClientError as error:
            return error.code
        return 101

    return asyncio.run(open_socket())


def test_a_page_from_elsewhere_is_refused(served, token):
    assert handshake(served, token, f"http://127.0.0.1:{served}") == 101
    assert handshake(served, token, f"http://localhost:{served}") == 101
    for origin in (
        "http://evil.example",
        f"http://evil.example:{served}",
        "http://localhost:1",
        "null",
    ):
        assert handshake(served, token, origin) == 403


def test_a_page_with_a_foreign_name_holds_no_data(served, shown):
    """A name made to lead here gets the shell; what fills it comes through the websocket."""
    request = Request(f"http://127.0.0.1:{served}/", headers={"Host": "evil.example"})
    html = urlopen(request, timeout=60).read().decode()
    assert len(html) < 20_000 and "__ndarray__" not in html


def test_oversize_input_is_refused(served, token):
    request = Request(f"http://127.0.0.1:{served}/", data=b"x" * (server.MOST_BYTES + 1))
    with pytest.raises(OSError):
        urlopen(request, timeout=60)

    async def closes(length):
        """Whether the server hangs up on the first part of a message with so long a header."""
        request = HTTPRequest(f"ws://127.0.0.1:{served}/ws")
        connection = await websocket_connect(request, subprotocols=["bokeh", token])
        await connection.read_message()  # the greeting's first part: the server listens
        header = {"msgid": "1", "msgtype": "PULL-DOC-REQ", "more": "x" * length}
        await connection.write_message(json.dumps(header))
        try:
            while await asyncio.wait_for(connection.read_message(), 3) is not None:
                pass
            return True
        except TimeoutError:
            return False

    assert asyncio.run(closes(server.MOST_BYTES))
    assert not asyncio.run(closes(server.MOST_BYTES // 2))


def test_a_taken_port_is_said(served, shown):
    with pytest.raises(WorkdirError, match=f"port {served} is taken; choose another with --port"):
        server.start(*shown("given")[1:], served)


# In a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def visit(browser):
    """(address) -> a page that is ready, whose `faults` must stay empty."""
    visited = []

    def go(address):
        tab = browser.new_page(viewport={"width": 1200, "height": 1000})
        tab.set_default_timeout(120_000)
        tab.faults = []
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.on(
            "console",
            lambda line: line.type in ("error", "warning") and tab.faults.append(line.text),
        )
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.asked = []
        tab.goto(address)
        tab.wait_for_function(
            "window.explorer && explorer.state().values && !explorer.state().busy"
        )
        visited.append(tab)
        return tab

    yield go
    for tab in visited:
        assert tab.faults == []


def settled(tab):
    """Style, label and image once nothing is on its way."""
    tab.wait_for_timeout(500)
    tab.wait_for_function("!explorer.state().busy")
    state = tab.evaluate(
        "(({style, label, values, from, to}) => ({style, label: label && Array.from(label), "
        "values: Array.from(values), from, to}))(explorer.state())"
    )
    return state


def place(tab, name, x, y):
    """Mouse coordinates of a share of a root's canvas."""
    model = f"Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name('{name}'))"
    box = tab.evaluate(
        f"(({{left, top, width, height}}) => [left, top, width, height])"
        f"({model}.el.getBoundingClientRect())"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


def pixels(tab, name):
    """What a picture's source holds, and so its canvas shows: grey levels."""
    return np.array(
        tab.evaluate(
            f"Array.from(Bokeh.documents[0].get_model_by_name('{name}').renderers[0]"
            ".data_source.data.image[0], (v) => v & 255)"
        )
    )


def agrees(state, model, tolerance):
    label = None if state["label"] is None else np.float32([state["label"]])
    expected = model.decode(np.float32([state["style"]]), label).ravel()
    np.testing.assert_allclose(state["values"], expected, atol=tolerance)


def walk_through(tab, model, scene, tolerance):
    """Everything that a person does, on either page."""
    first = settled(tab)
    agrees(first, model, tolerance)
    np.testing.assert_allclose(first["style"], scene.codes[scene.pictured[0]], atol=1e-6)
    np.testing.assert_allclose(
        pixels(tab, "decoded"), 255 * np.array(first["values"]), atol=0.51, err_msg="as shown"
    )
    np.testing.assert_allclose(pixels(tab, "original"), 255 * scene.pictures[0].ravel(), atol=0.51)

    tab.mouse.move(*place(tab, "plane", 0.3, 0.3))
    tab.mouse.down()
    tab.mouse.move(*place(tab, "plane", 0.5, 0.5), steps=6)
    halfway = settled(tab)
    tab.mouse.move(*place(tab, "plane", 0.6, 0.4), steps=3)
    tab.mouse.up()
    dragged = settled(tab)
    assert len({tuple(np.round(s["style"][:2], 3)) for s in (first, halfway, dragged)}) == 3
    assert dragged["style"][0] > halfway["style"][0] and dragged["style"][1] > halfway["style"][1]
    assert np.abs(np.subtract(dragged["values"], first["values"])).max() > 0.01
    agrees(dragged, model, tolerance)

    tab.mouse.click(*place(tab, "strip", 6.5 / 20, 0.75))
    landed = settled(tab)
    assert (landed["from"], landed["to"]) == (0, 26)
    np.testing.assert_allclose(landed["style"], scene.codes[scene.pictured[26]], atol=1e-6)
    np.testing.assert_allclose(pixels(tab, "original"), 255 * scene.pictures[26].ravel(), atol=0.51)
    agrees(landed, model, tolerance)

    tab.get_by_text("Play").click()
    tab.wait_for_timeout(700)
    tab.get_by_text("Pause").click()
    walked = settled(tab)
    ends = scene.codes[scene.pictured[[0, 26]]]
    share = (np.array(walked["style"]) - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(share, share[0], atol=1e-3, err_msg="on the straight line")
    assert 0 <= share[0] < 1
    agrees(walked, model, tolerance)
    return walked


@pytest.mark.browser
def test_a_file_in_a_browser(visit, shown):
    folder, model, scene = shown("plane")
    file.write(folder, folder / "a.html")
    tab = visit(f"file://{folder}/a.html")
    walk_through(tab, model, scene, TOLERANCE)
    assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.asked)


@pytest.mark.browser
@pytest.mark.parametrize("name", EVERY)
def test_a_pages_decoder_in_a_browser(visit, shown, name):
    folder, model, scene = shown(name)
    file.write(folder, folder / "b.html")
    tab = visit(f"file://{folder}/b.html")
    style, label = some_codes(scene)
    values = tab.evaluate(
        "async (codes) => { const images = []; for (const [style, label] of codes) "
        "images.push(Array.from(await explorer.decode(style, label))); return images }",
        [[s.tolist(), None if label is None else label[i].tolist()] for i, s in enumerate(style)],
    )
    expected = model.decode(style, label).reshape(len(style), -1)
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)


@pytest.mark.browser
def test_a_served_page_in_a_browser(visit, shown, served):
    _, model, scene = shown("given")
    tab = visit(f"http://127.0.0.1:{served}/")
    walked = walk_through(tab, model, scene, 1e-6)
    assert all(
        url.startswith((f"http://127.0.0.1:{served}/", "data:", "blob:")) for url in tab.asked
    )

    tab.get_by_role("button", name="7", exact=True).click()
    switched = settled(tab)
    assert switched["style"] == walked["style"] and switched["label"] == np.eye(10)[7].tolist()
    assert np.abs(np.subtract(switched["values"], walked["values"])).max() > 0.01
    agrees(switched, model, 1e-6)

    tab.locator(".noUi-handle").last.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    slid = settled(tab)
    assert slid["style"][:2] == switched["style"][:2] and slid["style"][2] > switched["style"][2]
    agrees(slid, model, 1e-6)

    tab.get_by_label("Across").select_option(label="Dimension 3")
    tab.mouse.click(*place(tab, "plane", 0.2, 0.5))
    turned = settled(tab)
    assert turned["style"][0] == slid["style"][0] and turned["style"][2] < slid["style"][2]
