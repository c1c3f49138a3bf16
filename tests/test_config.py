import copy
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from aae_jax import config as config_module
from aae_jax.config import (
    ConfigError,
    base,
    check_field,
    differences,
    digest,
    has_label_head,
    mnist,
    use_adam,
    validate,
)


def changed(**fields) -> ConfigDict:
    """The base config with fields set whatever their type; __ stands for a dot."""
    values = base().to_dict()
    for name, value in fields.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[last] = value
    return ConfigDict(values)


def leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


LEAVES = dict(leaves(base().to_dict()))


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    line = str(caught.value)
    assert line.strip() and len(line.splitlines()) == 1
    return line


# The base config


def test_the_base_config_is_valid_locked_and_never_shared():
    config = base()
    validate(config)
    assert config.is_locked
    config.train.epochs = 3.0
    config.optimizers.generator.learning_rate = 9.0
    assert base().train.epochs == 100.0
    assert base().optimizers.generator.learning_rate == 0.1
    with pytest.raises(AttributeError):
        config.train.epoch = 3.0


def test_the_base_config_has_the_rates_of_appendix_a_2_1():
    optimizers = base().optimizers
    rates = {name: (fields.learning_rate, fields.momentum) for name, fields in optimizers.items()}
    assert rates == {
        "autoencoder": (0.01, 0.9),
        "discriminator": (0.1, 0.1),
        "generator": (0.1, 0.1),
        "classifier": (0.1, 0.9),
        "smoothness": (0.1, 0.9),
    }
    assert {fields.name for fields in optimizers.values()} == {"sgd"}
    assert base().train.batch_size == base().train.labelled_batch_size == 100
    assert {base()[net].init for net in ("encoder", "decoder", "discriminator")} == {"normal(0.01)"}


def test_mnist_differs_from_base_only_in_data_length_and_scores():
    changes = differences(base().to_dict(), mnist().to_dict())
    assert [change.split(":")[0] for change in changes] == [
        "data.paper",
        "data.source",
        "data.validation",
        "evaluation.sample_quality",
        "evaluation.samples",
        "train.epochs",
    ]
    assert (mnist().data.source, mnist().data.validation) == ("tfds:mnist", 10_000)
    validate(mnist())


def test_use_adam_changes_three_optimizers_and_the_initial_weights_only():
    config = base()
    use_adam(config, autoencoder=0.5, discriminator=0.25, generator=0.125)
    validate(config)
    fields = {each.split(":")[0] for each in differences(base().to_dict(), config.to_dict())}
    assert fields == {
        *(f"{net}.init" for net in ("encoder", "decoder", "discriminator")),
        *(
            f"optimizers.{name}.{field}"
            for name in ("autoencoder", "discriminator", "generator")
            for field in ("name", "learning_rate", "momentum", "schedule")
        ),
    } - {"optimizers.autoencoder.momentum"}
    rates = {name: fields.learning_rate for name, fields in config.optimizers.items()}
    assert rates == {
        "autoencoder": 0.5,
        "discriminator": 0.25,
        "generator": 0.125,
        "classifier": 0.1,
        "smoothness": 0.1,
    }


def test_modules_are_reached_through_the_package_alone():
    code = "import aae_jax; print(aae_jax.config.base().seed, hasattr(aae_jax, 'nothing'))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.stdout == "0 False\n", outcome.stderr


def test_reading_a_config_does_not_import_jax():
    code = "import sys, aae_jax.config; aae_jax.config.base(); print('jax' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


# Fields that are not there, or of the wrong type


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("sed", "seed"),
        ("train__epoch", "train.epochs"),
        ("optimizers__generator__learning_rat", "optimizers.generator.learning_rate"),
        ("style__prioor", "style.prior"),
    ],
)
def test_an_unknown_field_is_named_with_the_one_that_was_meant(field, near):
    line = refusal(changed(**{field: 1}))
    assert line.startswith(f"{field.replace('__', '.')} is not a field")
    assert f"did you mean {near}?" in line
    siblings = [name for name in LEAVES if name.rpartition(".")[0] == near.rpartition(".")[0]]
    assert all(name.rpartition(".")[2] in line.split("known:")[1] for name in siblings)


def test_an_unknown_optimizer_is_refused():
    assert "optimizers.critic is not a field" in refusal(changed(optimizers__critic={"name": "x"}))


@pytest.mark.parametrize("field", ["seed", "train.parallel", "optimizers.classifier.schedule"])
def test_a_missing_field_is_named(field):
    values = base().to_dict()
    *parents, last = field.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    del place[last]
    assert refusal(ConfigDict(values)).startswith(f"{field} is missing")


WRONG = {int: ["3", 3.0, True, None], float: ["0.1", None, True], str: [3, None, ("a",)]}
WRONG |= {bool: [1, "True"], tuple: [[1, 2], 3, "reconstruction"]}


@pytest.mark.parametrize("kind", list(WRONG), ids=lambda kind: kind.__name__)
def test_a_value_of_a_wrong_type_is_named_with_the_type_wanted(kind):
    for field in (name for name, example in LEAVES.items() if type(example) is kind):
        for value in WRONG[kind]:
            line = refusal(changed(**{field.replace(".", "__"): value}))
            assert line.startswith(f"{field} is {value!r}, a {type(value).__name__}; ")
            assert line.endswith(f"allowed: {kind.__name__}")


def test_a_whole_number_serves_where_a_fraction_is_allowed():
    validate(changed(train__epochs=20, penalties__kl=0, optimizers__generator__learning_rate=1))


def test_a_value_in_the_place_of_fields_is_refused():
    assert refusal(changed(train=3)).startswith("train is 3")
    assert "optimizers.generator is 'adam'" in refusal(changed(optimizers__generator="adam"))


def test_the_papers_figures_are_free():
    validate(changed(paper={"classification error": "1.90", "anything": "2"}))


@pytest.mark.parametrize("paper", [3, "1.90", {"error": 1.9}, {"error": None}])
def test_figures_that_the_report_could_not_print_are_refused(paper):
    fields = {**base().to_dict(), "paper": paper}
    line = refusal(ConfigDict(fields))
    assert line.startswith("paper") and "\n" not in line


@pytest.mark.parametrize("field", ["train.epochs", "train.batch_size", "style.weight"])
def test_numbers_that_no_array_or_float_holds_are_refused(field):
    for number in (2**31, -(10**30), 10**400):
        line = refusal(changed(**{field.replace(".", "__"): number}))
        assert line == f"{field} is {number}; allowed: whole numbers below 2**31"


# Values that are impossible by themselves

OPTIMIZER_VALUES = {
    "name": (["adam", "adamw", "rmsprop", "sgd"], ["Adam", "", "lamb"]),
    "learning_rate": ([1e-9, 10.0], [0.0, -0.1, math.nan, math.inf]),
    "momentum": ([0.0, 0.999], [1.0, -0.1, math.nan]),
}
NETWORK_VALUES = {
    "widths": ([(1,), (3, 5, 7)], [(0,), (-1,), (10, 2.5), ("a",), (2**31,)]),
    "activation": (["relu", "leaky_relu", "gelu", "tanh", "softplus"], ["elu", "", "ReLU"]),
}
MATCH_VALUES = {
    "weight": ([0.0, 3.0], [-0.1, math.nan, math.inf]),
    "noise": ([0.0, 3.0], [-0.1, math.nan]),
}
# Field -> (values that are fine, values that are not).
VALUES = {
    "seed": ([0, 2**31 - 1], [-1, 2**31, 10**400]),
    "init_parts": (
        [()],
        [("",), ("a//b",), ("/a",), (1,), ("a", "a"), ("a/b", "a")],
    ),
    "data.source": (["idx:x", "tfds:mnist"], ["", "  "]),
    "data.validation": ([0, 5], [-1]),
    "data.labels": ([-1, 1, 0], [-2]),
    "data.preprocessing": (["unit"], ["none", "", "Standardize"]),
    "model.style_dim": ([1, 100], [0, -1]),
    "model.labels": ([0, 10], [-1]),
    "model.layout": (["style"], ["label", ""]),
    "model.posterior": (["deterministic", "gaussian"], ["Gaussian", ""]),
    "model.noise_dim": ([0], [-1]),
    "encoder.channels": ([0, 32], [-1]),
    "decoder.channels": ([0, 32], [-1]),
    "encoder.input_noise": ([0.0, 0.3], [-0.1, math.nan]),
    "encoder.input_dropout": ([0.0, 0.99], [1.0, -0.1]),
    "encoder.dropout": ([0.0, 0.99], [1.0, -0.1, math.nan]),
    "decoder.output": (["sigmoid", "linear", "bernoulli"], ["tanh", ""]),
    "cluster_heads.init_std": ([0.0, 1.0], [-1.0]),
    "cluster_heads.fixed": ([0.0, 1.0], [-1.0]),
    "cluster_heads.eta": ([0.0, 1.0], [-1.0, math.inf]),
    "penalties.kl": ([0.0], [-1.0, math.nan]),
    "penalties.heads_apart": ([0.0], [-1.0]),
    "penalties.information": ([0.0], [-1.0]),
    "phases": (
        [("regularization", "reconstruction")],
        [(), ("reconstruction", "reconstruction"), ("training",), (3,), ([1],)],
    ),
    "train.epochs": ([0.01, 5000.0], [0.0, -1.0, math.nan, math.inf]),
    "train.batch_size": ([1, 1000], [0, -100]),
    "train.labelled_batch_size": ([1], [0, -1]),
    "train.chunk_steps": ([1], [0, -1]),
    "train.smoothness_radius": ([0.1], [0.0, -1.0, math.nan]),
    "train.smoothness_start": ([0.0, 40.0], [-1.0, math.nan, math.inf]),
    "train.averaging": ([0.0, 0.999], [1.0, -0.1]),
    "train.parallel": (["pmap", "shard_map"], ["xmap", ""]),
    "train.compute_dtype": (["float32", "bfloat16"], ["float16", "float64", ""]),
    "checkpoint.every_seconds": ([0.1], [0.0, -1.0]),
    "checkpoint.keep": ([2, 9], [1, 0, -1]),
    "evaluation.every_epochs": ([0.5], [0.0, -1.0]),
    "evaluation.samples": ([10], [9, 0, -1]),
    "evaluation.parzen_samples": ([0, 10], [-1]),
    **{
        f"optimizers.{name}.{field}": values
        for name in config_module.OPTIMIZER_NAMES
        for field, values in OPTIMIZER_VALUES.items()
    },
    **{
        f"{network}.{field}": values
        for network in ("encoder", "decoder", "discriminator")
        for field, values in NETWORK_VALUES.items()
    },
    **{
        f"{part}.{field}": values
        for part in ("style", "label")
        for field, values in MATCH_VALUES.items()
    },
}


@pytest.mark.parametrize("field", sorted(VALUES))
def test_an_impossible_value_is_named_with_what_is_allowed(field):
    good, bad = VALUES[field]
    for value in good:
        validate(changed(**{field.replace(".", "__"): value}))
    for value in bad:
        line = refusal(changed(**{field.replace(".", "__"): value}))
        assert line.startswith(f"{field} is {value!r}; allowed: ")
        if isinstance(value, str) and field != "data.source":
            assert all(repr(name)[1:-1] in line for name in good)


ANY = {
    int: st.integers(),
    float: st.floats(),
    str: st.text(max_size=20),
    bool: st.booleans(),
    tuple: st.lists(st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers())),
}


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_value_of_the_right_type_is_taken_or_refused_in_one_line_with_the_field(data):
    field = data.draw(st.sampled_from(sorted(LEAVES)))
    kind = type(LEAVES[field])
    value = data.draw(ANY[kind])
    value = tuple(value) if kind is tuple else value
    try:
        validate(changed(**{field.replace(".", "__"): value}))
    except ConfigError as error:
        assert field.rpartition(".")[2] in str(error)
        assert "\n" not in str(error).replace(repr(value), "")


# Values that contradict each other

WITH_LABELS = {"model__labels": 10}
CLASSIFYING = {"phases": ("reconstruction", "regularization", "classification")}
INFERRED = {**WITH_LABELS, "model__layout": "style_and_inferred_label"}
HEADS = {**WITH_LABELS, "model__layout": "cluster_heads", "cluster_heads__eta": 2.0}
UNMATCHED = {"style__divergence": "", "phases": ("reconstruction",)}
# What is wrong -> (the changes, a value that mends them, words of the message).
CONTRADICTIONS = {
    "a layout with a label but no labels": (
        {"model__layout": "style_and_given_label"},
        WITH_LABELS,
        ["model.layout", "style_and_given_label", "model.labels"],
    ),
    "smoothness without a label head": (
        {"phases": ("reconstruction", "regularization", "smoothness")},
        INFERRED,
        ["smoothness", "label head", "model.labels"],
    ),
    "noise for a posterior that takes none": (
        {"model__noise_dim": 3},
        {"model__posterior": "universal"},
        ["model.noise_dim is 3", "universal"],
    ),
    "a universal posterior without noise": (
        {"model__posterior": "universal"},
        {"model__noise_dim": 1},
        ["model.noise_dim is 0", "universal"],
    ),
    "a sigmoid of standardised pixels": (
        {"data__preprocessing": "standardize"},
        {"decoder__output": "linear"},
        ["decoder.output is sigmoid", "data.preprocessing standardize", "unit"],
    ),
    "information without smoothness": (
        {**INFERRED, "penalties__information": 0.1},
        {"phases": ("reconstruction", "regularization", "smoothness")},
        ["penalties.information", "smoothness"],
    ),
    "augmented neighbours without smoothness": (
        {"train__smoothness_augmentation": "affine(degrees=10)"},
        {"train__smoothness_augmentation": ""},
        ["train.smoothness_augmentation", "the phase smoothness"],
    ),
    "information of one example": (
        {
            **INFERRED,
            "penalties__information": 0.1,
            "phases": ("reconstruction", "regularization", "smoothness"),
            "train__batch_size": 1,
        },
        {"train__batch_size": 2},
        ["penalties.information", "2 or more", "train.batch_size"],
    ),
    "parts of no other run": (
        {"init_parts": ("encoder/a", "encoder/ab")},
        {"init_from": "runs/other"},
        ["init_parts needs init_from"],
    ),
    "streaming of what is read into memory": (
        {"data__streaming": True, "data__source": "npz:x.npz"},
        {"data__source": "tfds:mnist"},
        ["data.streaming is True", "npz:x.npz", "tfds:"],
    ),
    "a VAE with a deterministic encoder": (
        {"penalties__kl": 1.0},
        {"model__posterior": "gaussian"},
        ["penalties.kl", "model.posterior", "gaussian", "deterministic"],
    ),
    "apart without heads": (
        {**INFERRED, "penalties__heads_apart": 1.0, "cluster_heads__eta": 1.0},
        {"model__layout": "cluster_heads"},
        ["penalties.heads_apart", "cluster_heads"],
    ),
    "apart with fixed heads": (
        {**HEADS, "penalties__heads_apart": 1.0, "cluster_heads__fixed": 10.0},
        {"cluster_heads__fixed": 0.0},
        ["penalties.heads_apart", "learned"],
    ),
    "apart by nothing": (
        {**HEADS, "penalties__heads_apart": 1.0, "cluster_heads__eta": 0.0},
        {"cluster_heads__eta": 1.0},
        ["penalties.heads_apart", "cluster_heads.eta"],
    ),
    "smoothness that begins when the run is over": (
        {
            **INFERRED,
            "phases": ("reconstruction", "regularization", "smoothness"),
            "train__smoothness_start": 100.0,
        },
        {"train__epochs": 101.0},
        ["train.smoothness_start", "100", "train.epochs"],
    ),
    "a fitted prior beside a matched one": (
        {"evaluation__fitted_prior": True},
        {"style__divergence": "", "phases": ("reconstruction",)},
        ["evaluation.fitted_prior", "style.divergence"],
    ),
    "matched labels without a head": (
        {"label__divergence": "gan()"},
        INFERRED,
        ["label.divergence", "model.labels"],
    ),
    "matched labels where labels are given": (
        {**WITH_LABELS, "model__layout": "style_and_given_label", "label__divergence": "gan()"},
        {"model__layout": "style_and_inferred_label"},
        ["label.divergence", "label head"],
    ),
    "an informed label": (
        {**INFERRED, "label__divergence": "gan()", "label__label_informed": True},
        {"label__label_informed": False},
        ["label.label_informed is True", "allowed: False"],
    ),
    "informed without a critic": (
        {**UNMATCHED, "style__label_informed": True},
        {"style__label_informed": False},
        ["style.label_informed", "style.divergence"],
    ),
    "nothing to regularize": (
        {"style__divergence": ""},
        {"phases": ("reconstruction",)},
        ["phases", "regularization", "style.divergence"],
    ),
    "a divergence that no phase uses": (
        {"phases": ("reconstruction",)},
        {"style__divergence": ""},
        ["style.divergence", "phases", "regularization"],
    ),
    "classification without a head": (
        CLASSIFYING,
        WITH_LABELS,
        ["classification", "model.labels"],
    ),
    "classification without labels": (
        {**CLASSIFYING, **WITH_LABELS, "data__labels": 0},
        {"data__labels": 100},
        ["classification", "data.labels"],
    ),
}


@pytest.mark.parametrize("what", sorted(CONTRADICTIONS))
def test_values_that_contradict_each_other_are_named(what):
    changes, mended, words = CONTRADICTIONS[what]
    line = refusal(changed(**changes))
    assert all(word in line for word in words), line
    validate(changed(**{**changes, **mended}))


@pytest.mark.parametrize(
    ("layout", "labels", "head"),
    [
        ("style", 0, False),
        ("style", 10, True),
        ("style_and_given_label", 10, False),
        ("style_and_inferred_label", 10, True),
        ("cluster_heads", 10, True),
    ],
)
def test_the_encoder_has_a_label_head_unless_the_label_is_given(layout, labels, head):
    assert has_label_head(changed(model__layout=layout, model__labels=labels)) is head


# Field names, fingerprints and differences


def test_every_field_and_every_group_of_fields_is_known():
    groups = {field.rpartition(".")[0] for field in LEAVES} - {""}
    for field in [*LEAVES, *groups]:
        check_field(field)
    check_field("paper.anything.at all")


@pytest.mark.parametrize("field", ["", "epochs", "train.epoch", "train.epochs.x", "train.", "x.y"])
def test_a_name_that_is_no_field_is_refused_in_one_line(field):
    with pytest.raises(ConfigError, match="is not a field") as caught:
        check_field(field)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_changes_with_every_field_and_with_nothing_else():
    same = ConfigDict(dict(reversed(list(base().to_dict().items()))))
    assert digest(base()) == digest(same) == digest(copy.deepcopy(base()))
    other = {bool: lambda v: not v, str: lambda v: v + "x", tuple: lambda v: (*v[1:], "x")}
    digests = [
        digest(changed(**{field.replace(".", "__"): other.get(type(v), lambda v: v + 1)(v)}))
        for field, v in LEAVES.items()
    ]
    assert len({digest(base()), *digests}) == len(LEAVES) + 1


def test_the_fingerprint_outlives_fields_that_are_added_later(monkeypatch):
    def later(seed):
        config = changed(seed=seed)
        config.data.new_field = 1.0
        return config

    earlier = digest(changed(seed=3))
    monkeypatch.setattr(config_module, "base", lambda: later(0))
    assert digest(later(3)) == earlier


def test_differences_name_each_field_with_both_values():
    old = {"a": {"b": 1, "c": (1, 2), "gone": "x"}, "same": 3, "kind": 1}
    new = {"a": {"b": 2, "c": [1, 2], "new": None}, "same": 3, "kind": {"x": 1}}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "a.gone: 'x' -> None",
        "kind: 1 -> {'x': 1}",
    ]
    assert differences(old, old) == []
    assert differences({"w": (1, 2)}, {"w": [1, 3]}) == ["w: [1, 2] -> [1, 3]"]


def test_every_rule_is_about_a_field_of_the_base_config():
    assert set(config_module._RULES) <= set(LEAVES)
    # What has no rule is checked where it is built (experiment.py), read (data) or only printed.
    free = {"experiment", "title", "init_from", "data.data_dir", "data.stand_in_for"}
    free |= {"data.paper", "train.augmentation", "train.smoothness_augmentation"}
    free |= {f"{net}.init" for net in ("encoder", "decoder", "discriminator")}
    free |= {f"{part}.{field}" for part in ("style", "label") for field in ("prior", "divergence")}
    free |= {field for field in LEAVES if field.endswith(".schedule")}
    free |= {field for field, value in LEAVES.items() if isinstance(value, bool)}
    assert set(LEAVES) - set(config_module._RULES) == free
    assert set(VALUES) == set(config_module._RULES), "a rule without a test"
