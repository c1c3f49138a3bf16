"""A trained model as files that need nothing of this package: functions, weights, a model card.

    export.write(aae_jax.load("runs/digits"), scores, "digits")

The functions are what `jax.export` makes of the encoder and the decoder, weights and preprocessing
inside: StableHLO for any number of examples, on a CPU, CUDA GPUs and TPUs.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from jax.export import Exported
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from aae_jax.coding import keys_of
from aae_jax.files import write_folder
from aae_jax.inference import Trained, shown
from aae_jax.report import Score, score_table
from aae_jax.workdir import CONFIG, WorkdirError

ENCODER, DECODER = "encoder.jax_export", "decoder.jax_export"
WEIGHTS, CARD = "weights.safetensors", "README.md"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: Trained, scores: Sequence[Score], out: str | os.PathLike[str]) -> None:
    """Writes a folder that holds all there is to a trained model; whole, or not at all.

    Args:
        model: of `aae_jax.load`.
        scores: of its run, for the model card.
        out: the folder, made here.

    Raises:
        WorkdirError: there is something at `out` already.
        OSError: it cannot be written.
    """
    if os.path.lexists(out):
        raise WorkdirError(f"{out} is there already; choose another --out, or move it away")
    functions = {ENCODER: encoder(model)}
    if _reconstructs(model):
        functions[DECODER] = decoder(model)
    contents = {
        **{name: bytes(function.serialize()) for name, function in functions.items()},
        WEIGHTS: safetensors.numpy.save(weights(model)),
        CONFIG: _config_text(model).encode(),
        CARD: card(model, scores, functions).encode(),
    }
    write_folder(out, contents)


def encoder(model: Trained) -> Exported:
    """The encoder: images -> {"style": [n, style_dim], "label": [n, labels]}.

    Images are float32 [n, *image_shape] in the data's units, as for `aae_jax.load`. The label,
    q(y|x), is there where the encoder infers one; the style where the run learned to reconstruct.
    Where the posterior is random there is a second argument, a seed: int32 []. The codes are then
    those of `model.encode(images, jax.random.key(seed))`.
    """

    def encode(images: Float[Array, "n ..."], seed: Int[Array, ""] | int = 0) -> dict[str, Array]:
        keys = keys_of(jax.random.key(seed), 0, images.shape[0])
        code = model.coder.encode(model.weights, keys, images)
        outputs = {"style": code.style} if _reconstructs(model) else {}
        if code.label_logits is not None:
            outputs["label"] = jax.nn.softmax(code.label_logits)
        return outputs

    seed = [jax.ShapeDtypeStruct((), jnp.int32)] if _is_random(model) else []
    return _exported(encode, [model.data.image_shape], seed)


def decoder(model: Trained) -> Exported:
    """The decoder: style [n, style_dim] -> float32 images [n, *image_shape], as `load` gives them.

    Where the decoder sees a label there is a second argument: distributions [n, labels].
    """

    def decode(
        style: Float[Array, "n style"], label: Float[Array, "n labels"] | None = None
    ) -> Float[Array, "n ..."]:
        keys = keys_of(jax.random.key(0), 0, style.shape[0])  # nothing is random
        return shown(model.data, model.coder.decode(model.weights, keys, style, label))

    fields = model.config.model
    label = [(fields.labels,)] if fields.layout != "style" else []
    return _exported(decode, [(fields.style_dim,), *label])


def weights(model: Trained) -> dict[str, np.ndarray]:
    """What the functions hold, by path, such as params/encoder/trunk/dense_0/kernel.

    The parameters are those to evaluate, averaged ones where the run keeps them. With them come
    batch_stats/... and the constants preprocessing/shift and preprocessing/scale.
    """
    networks = ["encoder", *(["decoder", "cluster_heads"] if _reconstructs(model) else [])]
    params, batch_stats = (
        {name: tree[name] for name in networks if name in tree} for tree in model.weights
    )
    constants = model.preprocessing._asdict()
    tree = {"params": params, "batch_stats": batch_stats, "preprocessing": constants}
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def card(model: Trained, scores: Sequence[Score], functions: Mapping[str, Exported]) -> str:
    """The model card, in the form of the Hugging Face Hub: YAML, then Markdown.

    Args:
        model: what it is about.
        scores: of its run.
        functions: the exported functions by the name of their file.
    """
    config, data = model.config, model.data
    units = "in 0..1" if data.image_type == "uint8" else "in the units of the data"
    stand_in = config.data.stand_in_for
    notes = [
        f"Images are float32, {units}; preprocessing is inside the functions.",
        "n is any number from 1. Each new one is compiled when it is first seen.",
        *_own_notes(model),
        f"`{WEIGHTS}` holds the same weights and constants by name, for other frameworks; "
        f"`{CONFIG}` says what they belong to.",
    ]
    return f"""---
library_name: jax
tags:
- adversarial-autoencoder
- jax
- stablehlo
---

# {" ".join(config.title.split())}

An adversarial autoencoder ([Makhzani et al., 2015](https://arxiv.org/abs/1511.05644)), trained for
{model.step:,} steps.

## Use

With `pip install jax flatbuffers`, in this folder:

```python
{_example(model)}
```

{_table(functions)}

{_listed(notes)}

## Data

{data.num_examples:,} training images, {data.image_type}, of `{config.data.source.split(":")[0]}`;
{f"{data.num_classes} classes" if data.num_classes else "no labels"}.
{f"They stand in for {stand_in}: scores do not compare with the paper's." if stand_in else ""}

## Scores

Of this run alone, with one seed.

```
{score_table(scores)}
```

## Limits

- The model knows images such as it was trained on, of the same size, position and units. What it is
  given is not checked.
- Results are those of `aae_jax.load` up to rounding. GPUs and TPUs round matrix products unless
  `jax_default_matmul_precision` says otherwise.
- The functions were written by JAX {jax.__version__} and aae_jax {version("aae_jax")}, for
  {", ".join(PLATFORMS)}. JAX promises that its versions of the six months after that read them; the
  weights have no such limit.
- No licence is named here: who publishes the model chooses one that the data allow.

## Config

<details>
<summary>{CONFIG}</summary>

```json
{_config_text(model)}```

</details>
"""


def _exported(
    function: Callable[..., object],
    shapes: Sequence[tuple[int, ...]],
    others: Sequence[jax.ShapeDtypeStruct] = (),
) -> Exported:
    """Exports a function of batches of examples of these shapes, and of other arguments."""
    (n,) = jax_export.symbolic_shape("n")
    batches = [jax.ShapeDtypeStruct((n, *shape), jnp.float32) for shape in shapes]
    with _without_paths():
        return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*batches, *others)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """JAX notes where each operation was written: what is published needs no folder's names."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, r".*[/\\]")
    try:
        yield
    finally:
        jax.config.update(option, before)


def _reconstructs(model: Trained) -> bool:
    return "reconstruction" in model.config.phases


def _is_random(model: Trained) -> bool:
    return model.config.model.posterior != "deterministic"


def _config_text(model: Trained) -> str:
    """The run's config; of the paths in it, what is published shows the last names only."""
    config = ConfigDict(model.config)
    kind, colon, place = config.data.source.partition(":")
    if kind in ("idx", "npz", "folder"):
        config.data.source = kind + colon + Path(place).name
    config.data.data_dir = Path(config.data.data_dir).name
    config.init_from = Path(config.init_from).name
    return config.to_json(indent=2, sort_keys=True) + "\n"


def _example(model: Trained) -> str:
    fields, shape = model.config.model, ", ".join(map(str, (3, *model.data.image_shape)))
    seed = ", 0" if _is_random(model) else ""
    lines = [
        "import jax.export, jax.numpy as jnp",
        _loading("encoder", ENCODER),
        f"codes = encoder.call(jnp.zeros(({shape})){seed})",
    ]
    if _reconstructs(model):
        given = f"jax.nn.one_hot(jnp.zeros(3, int), {fields.labels})"
        labels = {"style": "", "style_and_given_label": f", {given}"}
        label = labels.get(fields.layout, ', codes["label"]')
        lines.insert(2, _loading("decoder", DECODER))
        lines.append(f'images = decoder.call(codes["style"]{label})')
    return "\n".join(lines)


def _loading(name: str, file: str) -> str:
    return f'{name} = jax.export.deserialize(bytearray(open("{file}", "rb").read()))'


def _table(functions: Mapping[str, Exported]) -> str:
    """The functions' signatures, as `jax.export` has them."""
    names = {ENCODER: ("images", "seed"), DECODER: ("style", "label")}
    lines = ["| file | takes | gives |", "|---|---|---|"]
    for file, function in functions.items():
        takes = zip(names[file], map(str, function.in_avals), strict=False)
        gives = jax.tree.unflatten(function.out_tree, map(str, function.out_avals))
        outputs = gives.items() if isinstance(gives, dict) else [("images", gives)]
        cells = (", ".join(f"{name} `{aval}`" for name, aval in each) for each in (takes, outputs))
        lines.append(f"| `{file}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _own_notes(model: Trained) -> list[str]:
    """On the arguments and results that not every model has."""
    fields, notes = model.config.model, []
    if _is_random(model):
        notes.append(
            "The code is drawn from q(z|x). The seed says which draw: the same seed and the same "
            "place among the images give the same code."
        )
    if fields.layout == "style_and_given_label":
        notes.append("The label is the class of each image, one-hot.")
    elif fields.labels:
        kind = "classes" if "classification" in model.config.phases else "clusters"
        notes.append(f"The label is a distribution over {fields.labels} {kind}, q(y|x).")
    return notes


def _listed(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
