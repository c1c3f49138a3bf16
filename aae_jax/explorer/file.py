"""The explorer as one file, which decodes by itself."""

from pathlib import Path

from bokeh.embed import file_html
from bokeh.resources import INLINE

from aae_jax.explorer.network import Network, network, size
from aae_jax.explorer.page import document
from aae_jax.explorer.run import read
from aae_jax.explorer.scene import Scene
from aae_jax.files import write_whole

# The page may load nothing from anywhere. BokehJS makes functions of a page's code.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def write(folder: Path, path: Path) -> None:
    """Writes a run's explorer to `path`.

    Raises:
        InferenceError: its decoder is convolutional; or what `aae_jax.explorer.run.read` raises.
    """
    model, scene = read(folder)
    decoder = network(model)
    content = html(scene, decoder).encode()
    write_whole(path, content)
    print(f"{path}: {_megabytes(len(content))}, decoder's weights {_megabytes(size(decoder))}")


def html(scene: Scene, decoder: Network) -> str:
    """The explorer as a page that loads nothing."""
    held = {**decoder._asdict(), "layers": [layer._asdict() for layer in decoder.layers]}
    note = (
        f"Images are decoded in this page, which holds the decoder's weights as 16-bit numbers "
        f"({_megabytes(size(decoder))}) and loads nothing."
    )
    page = document(scene, {"network": held}, note, _POLICY)
    return file_html(
        page,
        INLINE,
        page.title,
        template=page.template,
        template_variables=page.template_variables,
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
