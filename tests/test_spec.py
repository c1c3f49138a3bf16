import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aae_jax.spec import MAX_LENGTH, SpecError, build


def gan():
    return "gan"


def petals(modes=10, distance=1.4, *, std_across: float = 0.1):
    if modes < 1:
        raise ValueError(f"modes must be\nat least 1, not {modes}")
    return ("petals", modes, distance, std_across)


def swiss_roll():
    return "swiss roll"


def rotate(prior, angle):
    return ("rotate", prior, angle)


def step(factor, epochs):
    return ("step", factor, epochs)


def broken(value=0):
    return value.no_such_attribute


KNOWN = {f.__name__: f for f in (gan, petals, swiss_roll, rotate, step, broken)}


def made(text):
    return build(text, KNOWN, "match.style.prior")


def error(text, known=KNOWN):
    with pytest.raises(SpecError) as caught:
        build(text, known, "match.style.prior")
    message = str(caught.value)
    assert message.startswith("match.style.prior: ")
    assert len(message.splitlines()) == 1
    assert len(message) <= 1000
    return message


class TestBuilt:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("gan", "gan"),
            ("gan()", "gan"),
            ("  gan ( )\n", "gan"),
            ("petals(modes=7, std_across=0.2)", ("petals", 7, 1.4, 0.2)),
            ("petals(3, -2)", ("petals", 3, -2, 0.1)),
            ("rotate(swiss_roll(), angle=0.5)", ("rotate", "swiss roll", 0.5)),
            ("rotate(swiss_roll, angle=-.5)", ("rotate", "swiss roll", -0.5)),
            (
                "rotate(angle=None, prior=rotate(gan, 'x'))",
                ("rotate", ("rotate", "gan", "x"), None),
            ),
            ("step(factor=0.1, epochs=(50, 1000))", ("step", 0.1, (50, 1000))),
            ("step(\n  True,\n  [(), [gan, -1]],\n)", ("step", True, [(), ["gan", -1]])),
        ],
    )
    def test_examples(self, text, value):
        assert made(text) == value

    def test_what_python_cannot_describe_is_called_too(self):
        assert build("largest(3, 5)", {"largest": max}, "x") == 5
        assert "largest" in error("largest()", {"largest": max})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10_000, 10_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(
            lambda args, named: Call(args, named),
            st.lists(inner, max_size=2),
            st.dictionaries(st.sampled_from(["a", "b", "café"]), inner, max_size=2),
        )
    ),
    max_leaves=8,
)


class Call:
    def __init__(self, args, named):
        self.args, self.named = list(args), dict(named)

    def __repr__(self):
        named = [f"{name}={value!r}" for name, value in self.named.items()]
        return f"call({', '.join([repr(arg) for arg in self.args] + named)})"

    def __eq__(self, other):
        return (type(other), self.args, self.named) == (Call, other.args, other.named)


@settings(deadline=None, max_examples=80)
@given(values)
def test_what_is_written_is_what_is_read(value):
    text = f"call({value!r})"
    known = {"call": lambda *args, **named: Call(args, named)}
    if len(text) <= MAX_LENGTH:
        result = build(text, known, "x")
        assert result == Call([value], {})
        # Equality alone would let True pass for 1, and 1 for 1.0.
        assert repr(result) == text


class TestErrors:
    def test_unknown_name_suggests_and_lists(self):
        message = error("petal(modes=3)")
        assert "'petal'" in message
        assert "did you mean petals?" in message
        assert "allowed: broken, gan, petals, rotate, step, swiss_roll" in message

    def test_nothing_close_is_not_suggested(self):
        assert "did you mean" not in error("zzz")

    def test_unknown_name_inside_a_call(self):
        assert "did you mean swiss_roll?" in error("rotate(swis_roll(), angle=1)")

    def test_wrong_argument_shows_the_signature(self):
        message = error("petals(mods=3)")
        assert "mods" in message
        assert "petals(modes=10, distance=1.4, *, std_across=0.1)" in message

    def test_missing_argument(self):
        message = error("rotate(gan)")
        assert "'angle'" in message
        assert "rotate(prior, angle)" in message

    def test_too_many_arguments(self):
        assert "too many positional arguments" in error("gan(1)")

    def test_repeated_argument(self):
        assert "angle more than once" in error("rotate(gan, angle=1, angle=2)")
        assert "multiple values" in error("rotate(gan, prior=1)")

    def test_errors_of_the_function_are_named(self):
        message = error("rotate(petals(modes=0), angle=1)")
        assert "petals in 'rotate(petals(modes=0), angle=1)': modes must be at least 1" in message

    def test_other_exceptions_of_the_function_are_named_and_kept(self):
        assert "broken in 'broken()': AttributeError: 'int'" in error("broken()")
        assert "TypeError" in error("petals(modes='three')")
        with pytest.raises(SpecError) as caught:
            made("broken()")
        assert isinstance(caught.value.__cause__, AttributeError)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "   ",
            "petals(",
            "petals(modes=)",
            "gan()\ngan()",
            "gan(); gan()",
            "x = gan()",
            "import os",
            "3",
            "'gan'",
            "[gan()]",
            "-gan()",
            "gan() + gan()",
            "gan()()",
            "gan().real",
            "gan.__class__",
            "(lambda: 0)()",
            "[gan for _ in 'ab']",
            "gan if 1 else gan",
            "petals(2 + 3)",
            "petals(2 ** 9999)",
            "petals(not 1)",
            "petals(+1)",
            "petals(--1)",
            "petals(-True)",
            "petals(-'a')",
            "petals(-gan())",
            "petals(1j)",
            "petals(b'1')",
            "petals(...)",
            "petals(1e999)",
            "petals(-1e999)",
            "petals({})",
            "petals({1})",
            "petals(f'{1}')",
            "petals(*[1])",
            "petals(**{'modes': 1})",
            "petals(modes:=1)",
            "petals((*[1],))",
            "step(0.1, (1, 2)[0])",
            "print('x')",
            "__import__('os')",
            "eval('1')",
            "petals(__name__)",
            "gan\0",
            "\ud800",
            "gan(\u2028)",
            "petals(modes=\x1c\r0)",
        ],
    )
    def test_refused(self, text):
        # petals takes anything here: the refusal must be the reader's.
        error(text, {**KNOWN, "petals": lambda *args, **named: "petals"})

    def test_length(self):
        longest = "gan()" + " " * (MAX_LENGTH - 5)
        assert made(longest) == "gan"
        assert "501 characters" in error(longest + " ")
        assert len(error("x" * 10**6)) < 200
        assert len(error("x" * 400)) < 400

    @pytest.mark.parametrize(
        "text",
        [
            "(" * 500,
            "-" * 499 + "1",
            "[" * 250 + "]" * 250,
            "f(" * 166 + ")" * 166,
            "gan" + "()" * 240,
            "not " * 120 + "1",
            "petals(" + "[" * 90 + "]" * 90 + ")",
        ],
    )
    def test_depth(self, text):
        error(text)

    def test_some_depth_is_fine(self):
        assert made("rotate(" * 10 + "gan" + ", 1)" * 10)
        assert "20 deep" in error("rotate(" * 21 + "gan" + ", 1)" * 21)

    def test_a_long_error_is_cut(self):
        def verbose():
            raise ValueError("word " * 10_000)

        assert error("verbose", {"verbose": verbose}).endswith("...")

    def test_an_odd_escape_warns_nobody(self, recwarn):
        error(r"gan('\d')")
        assert not recwarn.list


tokens = st.lists(
    st.sampled_from(
        [*KNOWN, *"()[]{}.,:=*-+'\"#\\\n@~", " ", "**", "lambda", "None", "1", "0.5", "1e999", "if"]
    )
    | st.text(max_size=3),
    max_size=30,
).map("".join)


@settings(deadline=None, max_examples=400)
@given(st.text(max_size=600) | st.text(string.printable, max_size=600) | tokens)
@example("gan(" + "9" * 490 + ")")
def test_any_text_is_built_or_refused_in_one_line(text):
    try:
        made(text)
    except SpecError as refused:
        assert len(str(refused).splitlines()) == 1
