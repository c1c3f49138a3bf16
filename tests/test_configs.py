"""Every experiment that configs/ offers, without its data and without compiling anything."""

import importlib.util
import inspect
import re
import shlex
from functools import cache, reduce
from operator import getitem
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax import assessment, gallery
from aae_jax.config import ConfigError, base, validate
from aae_jax.experiment import build
from aae_jax.phases import Batch
from aae_jax.workdir import run_name

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
# Its variants, as a person finds them in the docstring; the first is the default.
VARIANTS = {
    "digits": [None],
    "faces_likelihood": ["aae", "vae", "mmd"],
    "folder_images": [None],
    "mnist_autoencoder": [None],
    "mnist_classifier": ["100", "1000", "all"],
    "mnist_clustering": ["16", "30", "16/best", "30/best"],
    "mnist_dimensionality": [
        *("1000", "100", "20", "circle"),
        *("1000/best", "100/best", "20/best", "circle/best"),
    ],
    "mnist_gaussian": [None],
    "mnist_label_informed": ["mixture", "swiss_roll"],
    "mnist_likelihood": ["aae", "vae", "mmd", "ae", "aae/best"],
    "mnist_mixture": [None],
    "mnist_semisupervised": ["100", "1000", "all", "100/best", "1000/best", "all/best"],
    "mnist_supervised": [None],
    "mnist_vae": ["gaussian", "mixture"],
    "svhn_classifier": [None],
    "svhn_semisupervised": [None],
    "svhn_supervised": [None],
}
EVERY = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
NAMES = [f"{name}:{variant}" if variant else name for name, variant in EVERY]
# Image shape and number of training images.
DATA = {
    "digits": ((8, 8, 1), 1200),
    "faces": ((48, 48, 1), 28_000),
    "folder": ((36, 20, 3), 900),
    "mnist": ((28, 28, 1), 50_000),
    "svhn": ((32, 32, 3), 72_257),
}


@cache
def module(name):
    spec = importlib.util.spec_from_file_location(f"configs_{name}", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def config_of(name, variant):
    return module(name).get_config(*([] if variant is None else [variant]))


@cache
def built(name, variant):
    config = config_of(name, variant)
    validate(config)
    shape, size = DATA[name.split("_")[0]]
    classes = 0 if name.startswith("faces") else 10
    return build(config, image_shape=shape, num_classes=classes, num_examples=size)


@cache
def abstract_state(name, variant):
    return jax.eval_shape(built(name, variant).init, jax.random.key(0))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dense(inputs, outputs):
    return (inputs + 1) * outputs


def test_every_file_is_tested():
    assert sorted(VARIANTS) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_docstring_has_the_experiment_and_a_command_for_each_variant(name):
    text = inspect.getdoc(module(name)) or ""
    experiments = set(re.findall(r"\bE\d+\b", text.splitlines()[0]))
    assert experiments, "the first line names the row of the paper"
    commands = [
        shlex.split(line.replace("\\\n", " "))
        for line in re.findall(r"python -m aae_jax\.main (?:.*\\\n)*.*", text)
    ]
    configs = [command[command.index("--config") + 1] for command in commands]
    wanted = [f"configs/{name}.py" + (f":{each}" if each else "") for each in VARIANTS[name]]
    own = {each for each in configs if each.startswith(f"configs/{name}.py")}
    assert sorted(own) == sorted(wanted)
    # Another config's run comes first where this one starts from it.
    starts = {Path(config_of(name, each).init_from).parent.name for each in VARIANTS[name]} - {""}
    assert {run_name(each) for each in {*configs} - own} == starts
    assert {config_of(name, each).experiment for each in VARIANTS[name]} <= experiments | {""}
    assert inspect.getdoc(module(name).get_config)


@pytest.mark.parametrize(("name", "variant"), EVERY, ids=NAMES)
def test_a_config_is_valid_and_locked_and_speaks_of_its_experiment(name, variant):
    config = config_of(name, variant)
    validate(config)
    assert config.is_locked
    assert config.title and config.title != base().title
    assert config == config_of(name, variant) and config is not config_of(name, variant)
    # A published figure is printed beside a score by the score's name: it must be one.
    for score, printed in config.paper.items():
        assert f'"{score}"' in inspect.getsource(assessment)
        assert re.search(r"\d", printed)


@pytest.mark.parametrize(("name", "variant"), EVERY, ids=NAMES)
def test_a_config_builds_and_initialises(name, variant):
    experiment, config = built(name, variant), config_of(name, variant)
    params = abstract_state(name, variant).params
    shape, size = DATA[name.split("_")[0]]
    assert experiment.phases == config.phases
    passes = experiment.num_steps * config.train.batch_size / size
    assert config.train.epochs <= passes < config.train.epochs + 1
    trunk, widths = params["encoder"]["trunk"], config.encoder.widths
    convolutions = [trunk[name] for name in trunk if name.startswith("convolution")]
    assert bool(convolutions) == (config.encoder.channels > 0)
    # Two halvings, each to more channels.
    inputs = int(np.prod(shape)) if not convolutions else 9 * 5 * 2 * config.encoder.channels
    outputs = config.model.style_dim * (1 + (config.model.posterior == "gaussian"))
    if config.model.layout != "style_and_given_label":
        outputs += config.model.labels
    normalised = 2 * (sum(widths) * config.encoder.batch_norm)
    normalised += 2 * outputs * config.encoder.head_batch_norm
    assert size_of(params["encoder"]) == size_of(convolutions) + normalised + sum(
        dense(a, b) for a, b in zip((inputs, *widths), (*widths, outputs), strict=True)
    )
    assert set(params["discriminator"]) == {
        part
        for part in ("style", "label")
        if config[part].divergence not in ("", "mmd(scale=5.0)", "mmd(scale=10.0)")
    }


@pytest.mark.parametrize("name", FILES)
def test_a_step_of_a_config_keeps_the_state_and_gives_every_metric(name):
    variant = VARIANTS[name][0]
    experiment, config = built(name, variant), config_of(name, variant)
    state = abstract_state(name, variant)
    shape, _ = DATA[name.split("_")[0]]

    def batch(size):
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
        image = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
        return Batch(image, jax.ShapeDtypeStruct((size,), jnp.int32), keys)

    whole = batch(4)
    if "classification" in config.phases:
        whole = whole._replace(labelled=batch(3))
    after, metrics = jax.eval_shape(experiment.step, state, whole)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [x.shape for x in jax.tree.leaves(after)] == [x.shape for x in jax.tree.leaves(state)]
    assert ("reconstruction" in metrics) == ("reconstruction" in config.phases)
    assert ("classification" in metrics) == ("classification" in config.phases)
    assert ("kl" in metrics) == (config.penalties.kl > 0)
    assert ("heads_apart" in metrics) == (config.penalties.heads_apart > 0)
    assert ("information" in metrics) == (config.penalties.information > 0)
    for part in ("style", "label"):
        assert (f"{part}/generator" in metrics) == bool(config[part].divergence)
    assert set(experiment.equilibria) <= set(metrics)


@pytest.mark.parametrize("name", [name for name in FILES if VARIANTS[name] != [None]])
def test_without_a_variant_the_first_is_meant_and_an_unknown_one_is_named(name):
    assert module(name).get_config() == config_of(name, VARIANTS[name][0])
    for unknown in ("nonsense", "", "-3", "1.5"):
        with pytest.raises(ConfigError, match="allowed: ") as caught:
            module(name).get_config(unknown)
        line = str(caught.value)
        assert line.startswith(f"variant {unknown!r} is ") and "\n" not in line
        if name != "mnist_clustering":
            assert line.endswith(f"allowed: {', '.join(VARIANTS[name])}")


def test_any_number_of_clusters_from_two_on_is_a_variant():
    assert config_of("mnist_clustering", "7/best").model.labels == 7
    config = config_of("mnist_clustering", "7")
    validate(config)
    assert (config.model.labels, config.label.prior) == (7, "categorical(7)")
    assert not config.paper
    with pytest.raises(ConfigError, match="2 or more"):
        config_of("mnist_clustering", "1")


# What the paper prescribes (its sections 2 to 7 and appendix A): rows of experiment, configs, and
# fields with their values.
PAPER = [
    ("E1", "mnist_gaussian", None, {"style.prior": "gaussian(2, std=5.0)", "model.style_dim": 2}),
    ("E2", "mnist_mixture", None, {"style.prior": "petals(modes=10, scale=4.0)"}),
    ("E3", "mnist_vae", "gaussian", {"penalties.kl": 1.0, "model.posterior": "gaussian"}),
    (
        "E3",
        "mnist_vae",
        "mixture",
        {"style.prior": "petals(modes=10, scale=4.0)", "style.divergence": ""},
    ),
    (
        "E4",
        "mnist_label_informed",
        "mixture",
        {"style.label_informed": True, "data.labels": 10_000},
    ),
    (
        "E5",
        "mnist_label_informed",
        "swiss_roll",
        {"style.prior": "swiss_roll(modes=10, scale=4.0)"},
    ),
    ("E6", "mnist_likelihood", "aae", {"style.prior": "gaussian(8, std=5.0)"}),
    ("E7", "faces_likelihood", None, {"style.prior": "gaussian(15, std=10.0)"}),
    ("E7", "faces_likelihood", None, {"data.preprocessing": "standardize_pixels"}),
    ("E9", "mnist_supervised", None, {"model.layout": "style_and_given_label"}),
    ("E9", "mnist_supervised", None, {"model.style_dim": 15, "data.labels": -1}),
    ("E10", "svhn_supervised", None, {"encoder.widths": (1000, 1000), "decoder.batch_norm": True}),
    ("E10", "svhn_supervised", None, {"model.style_dim": 8, "style.label_informed": True}),
    ("E11", "mnist_semisupervised", "100", {"data.labels": 100, "encoder.input_noise": 0.3}),
    ("E11", "mnist_semisupervised", "1000", {"data.labels": 1000, "encoder.batch_norm": False}),
    ("E11", "mnist_semisupervised", "all", {"data.labels": -1, "model.style_dim": 10}),
    ("E12", "svhn_semisupervised", None, {"data.labels": 1000, "encoder.input_dropout": 0.2}),
    ("E12", "svhn_semisupervised", None, {"optimizers.autoencoder.learning_rate": 1e-4}),
    ("E13", "mnist_clustering", "16", {"data.labels": 0, "model.labels": 16}),
    ("E13", "mnist_clustering", "30", {"model.labels": 30, "encoder.head_batch_norm": True}),
    ("E13", "mnist_clustering", "16", {"encoder.batch_norm": True, "decoder.batch_norm": False}),
    ("E15", "mnist_dimensionality", "1000", {"data.labels": 1000, "model.style_dim": 2}),
    ("E15", "mnist_dimensionality", "100", {"data.labels": 100, "cluster_heads.fixed": 0.0}),
    ("E16", "mnist_dimensionality", "20", {"data.labels": 0, "model.labels": 20}),
    ("E17", "mnist_dimensionality", "circle", {"cluster_heads.fixed": 10.0, "data.labels": 100}),
    ("E18", "mnist_classifier", "100", {"phases": ("classification",), "encoder.dropout": 0.5}),
    ("E18", "mnist_autoencoder", None, {"phases": ("reconstruction",), "style.divergence": ""}),
]


@pytest.mark.parametrize(("experiment", "name", "variant", "fields"), PAPER)
def test_the_papers_settings(experiment, name, variant, fields):
    config = config_of(name, variant)
    assert config.experiment == experiment
    assert {field: reduce(getitem, field.split("."), config) for field in fields} == fields


@pytest.mark.parametrize(
    "name", ["mnist_semisupervised", "mnist_clustering", "mnist_dimensionality"]
)
def test_rates_are_the_papers_where_it_gives_them(name):
    """Appendix A.2.1 and A.3; the dimensionality reduction of section 7 builds on both."""
    for variant in VARIANTS[name]:
        if variant.endswith("/best"):
            continue
        config = config_of(name, variant)
        optimizers = config.optimizers
        assert {each: (f.name, f.learning_rate, f.momentum) for each, f in optimizers.items()} == {
            "autoencoder": ("sgd", 0.01, 0.9),
            "discriminator": ("sgd", 0.1, 0.1),
            "generator": ("sgd", 0.1, 0.1),
            "classifier": ("sgd", 0.1, 0.9),
            "smoothness": ("sgd", 0.1, 0.9),
        }


@pytest.mark.parametrize(
    "name", ["mnist_semisupervised", "mnist_clustering", "mnist_dimensionality"]
)
def test_the_best_recipe_is_one_for_few_labels_and_for_clusters(name):
    for variant in VARIANTS[name]:
        config = config_of(name, variant)
        best = variant.endswith("/best")
        assert ("smoothness" in config.phases) == best
        assert config.paper == config_of(name, variant.removesuffix("/best")).paper
        assert config.style.divergence == "gan()"
        if best:
            assert config.label.divergence == "" and config.penalties.information == 0.1
            assert config.encoder.batch_norm and config.encoder.head_batch_norm
            assert config.encoder.input_noise == config.encoder.input_dropout == 0
            assert config.train.smoothness_augmentation and not config.train.augmentation
            assert {fields.name for fields in config.optimizers.values()} == {"adam"}
            ends = {fields.schedule.partition("(")[0] for fields in config.optimizers.values()}
            assert ends == {"cosine"}, "all rates end at zero together"


def test_many_clusters_may_be_told_apart_by_slant():
    def slant(variant):
        return config_of("mnist_clustering", variant).train.smoothness_augmentation

    assert slant("29/best") == slant("16/best") == slant("10/best") != slant("30/best")
    assert "shear=15" in slant("16/best") and "shear=5" in slant("30/best")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("mnist")])
def test_sigma_and_clusters_are_chosen_on_images_held_out_of_training(name):
    assert config_of(name, VARIANTS[name][0]).data.validation == 10_000, "train[50000:]"


def test_ones_own_images_are_met_by_convolutions_and_pixels_stay_in_0_to_1():
    config = config_of("folder_images", None)
    params = abstract_state("folder_images", None).params
    assert "convolution_0" in params["encoder"]["trunk"] and "grid" in params["decoder"]
    assert (config.data.preprocessing, config.decoder.output) == ("unit", "sigmoid")
    assert config.style.prior.startswith("gaussian(16")


def test_published_figures_are_those_of_the_tables():
    def paper(name, variant):
        return list(config_of(name, variant).paper.values())

    assert paper("mnist_semisupervised", "100") == ["1.90 ± 0.10"]
    assert paper("mnist_semisupervised", "1000") == ["1.60 ± 0.08"]
    assert paper("mnist_semisupervised", "all") == ["0.85 ± 0.02"]
    assert paper("mnist_clustering", "16") == ["9.55 ± 2.05"]
    assert paper("mnist_clustering", "30") == ["4.10 ± 1.13"]
    assert paper("mnist_likelihood", "aae") == ["340 ± 2"]
    assert paper("svhn_semisupervised", None) == ["17.70 ± 0.30"]
    assert [paper("mnist_classifier", each) for each in ("100", "1000", "all")] == [
        ["25.80"],
        ["8.73"],
        ["1.25"],
    ]
    assert [paper("mnist_dimensionality", each)[0] for each in ("1000", "100", "circle")] == [
        "4.20",
        "6.08",
        "3.90",
    ]
    # Faces other than the paper's have no figure to be set beside.
    assert config_of("faces_likelihood", None).data.stand_in_for
    assert not config_of("faces_likelihood", None).paper


def test_every_figure_of_the_paper_is_drawn_by_the_config_it_is_taken_from():
    """The run's layout and prior say which figures it draws (aae_jax.assessment)."""

    def chosen(config):
        file, _, variant = config.partition(":")
        return config_of(file.removesuffix(".py"), variant or None)

    drawn_where = {
        "manifold": lambda c: c.model.style_dim == 2 and c.style.prior.startswith("gaussian"),
        "modes": lambda c: c.style.prior.startswith("petals"),
        "walk": lambda c: c.style.prior.startswith("swiss_roll"),
        "codes": lambda c: c.model.style_dim == 2 and c.model.layout == "style",
        "samples": lambda c: True,
        "styles_and_labels": lambda c: "_label" in c.model.layout,
        "clusters": lambda c: c.model.labels in (16, 30) and "classification" not in c.phases,
        "heads": lambda c: c.model.layout == "cluster_heads" and c.model.style_dim == 2,
        "circle": lambda c: c.model.layout == "cluster_heads" and c.cluster_heads.fixed > 0,
    }
    for plate in gallery.PLATES:
        assert drawn_where[plate.figure](chosen(plate.config)), plate
    assert all(chosen(config).model.style_dim == 2 for config in gallery.CODES)
    assert len({plate.name for plate in gallery.PLATES}) == len(gallery.PLATES)
