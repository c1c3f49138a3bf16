"""Walking in the code space: a page where a point of the plane is dragged and its image follows.

`--mode explore` serves the page on this machine, and the run's own `decode` answers. `--mode page`
writes `explorer.html`, one file that holds the decoder's weights and needs nobody.

Both are one Bokeh document (the extra `explore`). Bokeh is the light one of the kept libraries that
does both: its server refuses foreign origins, its JavaScript comes in the package, so that nothing
is loaded from a network, and a document can be written to a file whole. What a person does is
answered in the browser (`explorer.mjs`); the two pages differ only in who decodes.
"""

import importlib.util
from pathlib import Path

from aae_jax.command_line import fail
from aae_jax.program import explained

PAGE = "explorer.html"


def show(folder: Path, port: int | None) -> int:
    """Serves a run's explorer at the port, or writes it to a file where there is none; the status.

    It is served until interrupted.
    """
    if importlib.util.find_spec("bokeh") is None:
        fail("--mode explore and --mode page need Bokeh: pip install 'aae_jax[explore]'")
    # Bokeh is imported for these modes alone.
    from aae_jax.explorer import file, server

    if port is None:
        return explained(lambda: file.write(folder, folder / PAGE))
    return explained(lambda: server.serve(folder, port))
