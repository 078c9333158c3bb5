"""What holds for all public losses: documentation, transformations, dtypes, refused shapes.

Compiling takes nearly all the time: what one loss says of several arrays is one program of it.
"""

import functools
import inspect
import pathlib
import runpy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bellmax import losses

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("all_cases.py")))["CASES"]
# jaxtyping's own error where its checks are switched on (--jaxtyping-packages).
jaxtyping_error = pytest.importorskip("jaxtyping").TypeCheckError
BAD_SHAPE = (ValueError, jaxtyping_error)
BAD_DTYPE = (TypeError, jaxtyping_error)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
HALVES = (jnp.bfloat16, jnp.float16)


def arrays(case, shape, seed=0):
    return tuple(jnp.asarray(array) for array in case.make(shape, seed))


def with_reals(case, inputs, dtype):
    return tuple(array.astype(dtype) if i in case.real else array for i, array in enumerate(inputs))


class Findings(NamedTuple):
    """What one program of a loss found.

    Attributes:
      plain: values on a batch of leading shape (2, 3).
      mapped: the same by two `jax.vmap`.
      halves: values of float16 and bfloat16 inputs, each with those of the same in float32.
      slopes: gradients with respect to the constants, on a batch of three.
      single: values on another batch of three.
    """

    plain: jax.Array
    mapped: jax.Array
    halves: dict[str, tuple[jax.Array, jax.Array]]
    slopes: tuple[jax.Array, ...]
    single: jax.Array


@functools.cache
def findings(case):
    axes = tuple(None if i in case.shared else 0 for i in range(len(case.arguments)))
    batch, three, other = arrays(case, (2, 3)), arrays(case, (3,)), arrays(case, (3,), seed=1)
    halves = {dtype.__name__: with_reals(case, three, dtype) for dtype in HALVES}

    # Else XLA may leave out the very rounding that is looked for.
    @functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    def program(batch, three, other, halves):
        slopes = ()
        if case.constant:
            total = jax.grad(lambda *a: case.function(*a).sum(), argnums=tuple(case.constant))
            slopes = total(*three)
        return Findings(
            plain=case.function(*batch),
            mapped=jax.vmap(jax.vmap(case.function, axes), axes)(*batch),
            halves={
                name: (case.function(*half), case.function(*with_reals(case, half, jnp.float32)))
                for name, half in halves.items()
            },
            slopes=slopes,
            single=case.function(*other),
        )

    return program(batch, three, other, halves)


@functools.cache
def in_double_precision(case):
    """A compiled function of the reals that are not constant, and float64 values of these."""
    inputs = with_reals(case, arrays(case, (3,), seed=1), jnp.float64)
    moving = [i for i in case.real if i not in case.constant]

    @jax.jit
    def function(*values):
        full = list(inputs)
        for position, value in zip(moving, values, strict=True):
            full[position] = value
        return case.function(*full)

    return function, [inputs[i] for i in moving]


def public_functions():
    found = {name: getattr(losses, name) for name in losses.__all__}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", public_functions())
def test_docstring_has_its_sections(name):
    text = inspect.getdoc(getattr(losses, name)) or ""
    for section in ("Args:", "Returns:", "References:"):
        assert f"\n{section}\n" in text, f"{name} has no {section}"
    for argument in inspect.signature(getattr(losses, name)).parameters:
        assert f"  {argument}: " in text, f"{name} does not document {argument}"


def test_every_public_function_has_a_case():
    assert {name.split(":")[0] for name in CASES} == set(public_functions())


def test_all_is_sorted_and_holds_every_public_name():
    modules = {name for name, value in vars(losses).items() if inspect.ismodule(value)}
    public = {name for name in vars(losses) if not name.startswith("_")} - modules
    assert set(losses.__all__) == public
    assert len(set(losses.__all__)) == len(losses.__all__)


@every_case
def test_vmap_and_leading_shapes_agree(case):
    found = findings(case)
    # Token log-probabilities have an axis of tokens of their own.
    assert found.plain.shape[:2] == (2, 3)
    np.testing.assert_allclose(found.mapped, found.plain, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@every_case
def test_compiled_and_plain_calls_agree(case):
    expected = case.function(*arrays(case, (2, 3)))
    np.testing.assert_allclose(findings(case).plain, expected, rtol=1e-6, atol=1e-6)


@every_case
def test_no_leading_shape_and_empty_batch(case):
    def shape(leading):
        return jax.eval_shape(case.function, *case.make(leading)).shape

    assert shape((2,)) == (2, *shape(()))
    assert shape((0,)) == (0, *shape(()))


@every_case
def test_gradients_match_finite_differences(case):
    with jax.enable_x64(True):
        function, values = in_double_precision(case)
        if values:
            check_grads(function, values, order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@every_case
def test_constants_pass_no_gradient(case):
    slopes = findings(case).slopes
    assert len(slopes) == len(case.constant)
    for slope in slopes:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


@every_case
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_computed_in_float32(case, dtype):
    found, expected = findings(case).halves[dtype.__name__]
    assert found.dtype == jnp.float32
    # The same numbers, held in float32 from the start: no digit may get lost on the way.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@every_case
def test_gradients_come_back_in_the_dtype_of_the_input(case):
    inputs = list(arrays(case, (3,)))
    for position in case.real:
        inputs[position] = inputs[position].astype(jnp.bfloat16)
    gradient = jax.grad(lambda *a: case.function(*a).sum(), argnums=case.real)
    assert all(slope.dtype == jnp.bfloat16 for slope in jax.eval_shape(gradient, *inputs))


@every_case
def test_double_precision_stays(case):
    with jax.enable_x64(True):
        single = jax.eval_shape(case.function, *arrays(case, (3,), seed=1))
        function, values = in_double_precision(case)
        double = function(*values)
    assert single.dtype == jnp.float32
    assert double.dtype == jnp.float64
    np.testing.assert_allclose(findings(case).single, double, rtol=2e-5, atol=2e-6)


@every_case
def test_broadcasting_is_refused(case):
    inputs = list(arrays(case, (3,)))
    leading = [i for i in range(len(inputs)) if i not in case.shared]
    if len(leading) > 1:
        wrong = leading[-1]
        inputs[wrong] = inputs[wrong][:, None]
        with pytest.raises(BAD_SHAPE):
            case.function(*inputs)


@every_case
def test_no_function_promotes_ranks_silently(case):
    with jax.numpy_rank_promotion("raise"):
        gradient = jax.grad(lambda *a: case.function(*a).sum(), argnums=case.real)
        shapes = jax.eval_shape(gradient, *case.make((3,)))
    assert len(shapes) == len(case.real)


@every_case
def test_integers_are_refused_where_reals_are_expected(case):
    inputs = list(arrays(case, (3,)))
    first = case.real[0]
    inputs[first] = jnp.ones(inputs[first].shape, jnp.int32)
    with pytest.raises(BAD_DTYPE):
        case.function(*inputs)


MASKED = {
    "sequence_log_probs": [(0, 1)],
    "sequence_log_probs:mean": [(0, 1)],
    "segment_scores": [(0, 1)],
    "kto_baseline": [(0, 1)],
    "cpl_loss": [(0, 2), (1, 3)],
    "cpl_dense_loss": [(0, 1)],
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("poison", "dtype"),
    [(jnp.nan, jnp.float32), (jnp.inf, jnp.int32), (-jnp.inf, jnp.bool_)],
)
def test_masked_entries_may_hold_anything(name, poison, dtype):
    case = CASES[name]
    clean = list(arrays(case, (6,)))
    values = tuple(position for position, _ in MASKED[name])

    def run(inputs):
        total = jax.value_and_grad(lambda *a: case.function(*a).sum(), argnums=values)
        return jax.jit(total)(*inputs)

    for _, mask in MASKED[name]:
        # One row in which nothing counts at all: an empty completion.
        clean[mask] = clean[mask].at[0].set(0).astype(dtype)
    dirty = list(clean)
    for position, mask in MASKED[name]:
        dirty[position] = jnp.where(clean[mask] != 0, clean[position], poison)
    expected, found = run(clean), run(dirty)
    assert np.isfinite(found[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "name", ["sequence_log_probs", "sequence_log_probs:mean", "segment_scores"]
)
def test_nothing_counted_gives_zero(name):
    case = CASES[name]
    values = jnp.full((2, 4), jnp.nan)
    run = jax.value_and_grad(lambda v: case.function(v, jnp.zeros((2, 4))).sum())
    value, gradient = run(values)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 4)))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        if all(kind[0] in ("real", "sign", "unit", "length") for kind in case.arguments)
    ],
)
def test_extreme_ratios_stay_finite(name):
    # Relation 10 of the specification: |rho| = 1e4 with beta = 1 or less.
    case = CASES[name]
    inputs = list(arrays(case, (6,)))
    sizes = jnp.repeat(jnp.array([1e4, -1e4]), 3)
    for position in case.real:
        if case.arguments[position][0] == "real":
            sign = -1 if position % 2 else 1
            rows = sizes.reshape(6, *[1] * (inputs[position].ndim - 1))
            inputs[position] = jnp.broadcast_to(sign * rows / 2, inputs[position].shape)
    total = jax.value_and_grad(lambda *a: case.function(*a).sum(), argnums=case.real)
    value, gradients = jax.jit(total)(*inputs)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


HYPER = {
    "gpo_loss": ({"convex_fn": losses.logistic}, {"beta": 0.3, "label_smoothing": 0.1}),
    "dpo_loss": ({}, {"beta": 0.3, "label_smoothing": 0.1}),
    "ipo_loss": ({}, {"tau": 0.3}),
    "slic_loss": ({}, {"beta": 0.3}),
    "robust_dpo_loss": ({}, {"beta": 0.3, "label_smoothing": 0.1}),
    "rpo_loss": ({}, {"beta": 0.3, "eta": 0.1}),
    "length_normalised_dpo_loss": ({}, {"beta": 0.3}),
    "kto_loss": ({}, {"beta": 0.3, "desirable_weight": 1.1, "undesirable_weight": 0.9}),
    "sppo_completion_loss": ({}, {"eta": 3.0}),
    "sppo_loss": ({}, {"eta": 3.0}),
    "simpo_loss": ({}, {"beta": 2.0, "gamma": 0.5}),
    "orpo_loss": ({}, {"weight": 0.2}),
    "cpl_loss": ({}, {"alpha": 0.2, "bias": 0.5, "discount": 0.9, "label_smoothing": 0.1}),
    "cpl_dense_loss": ({}, {"alpha": 0.2, "bias": 0.5, "discount": 0.9}),
    "segment_scores": ({}, {"alpha": 0.2, "discount": 0.9}),
    "bradley_terry_loss": ({}, {"margin": 0.5, "label_smoothing": 0.1}),
    "implicit_rewards": ({}, {"beta": 0.3}),
    "preference_margin": ({}, {"beta": 0.3}),
    "chunked_token_log_probs": ({"chunk_size": 3}, {"softcap": 2.0}),
}


@pytest.mark.parametrize("name", HYPER)
def test_hyper_parameters_may_be_traced(name):
    case = next(case for key, case in CASES.items() if key.split(":")[0] == name)
    fixed, hyper = HYPER[name]
    function = getattr(losses, name)
    inputs = arrays(case, (3,))

    def run(values):
        return function(*inputs, **fixed, **values)

    np.testing.assert_allclose(jax.jit(run)(hyper), run(hyper), rtol=1e-6, atol=1e-6)
    traced = {key: jnp.float32(value) for key, value in hyper.items()}
    slopes = jax.jit(jax.grad(lambda values: run(values).sum()))(traced)
    assert all(np.isfinite(slope) for slope in slopes.values())


@pytest.mark.parametrize(
    ("name", "hyper", "named"),
    [
        ("dpo_loss", {"beta": 0.0}, "beta"),
        ("dpo_loss", {"beta": -1.0}, "beta"),
        ("dpo_loss", {"beta": float("nan")}, "beta"),
        ("dpo_loss", {"beta": 0.1, "label_smoothing": 1.5}, "label_smoothing"),
        ("ipo_loss", {"tau": 0}, "tau"),
        ("robust_dpo_loss", {"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing"),
        ("rpo_loss", {"beta": 0.1, "eta": -1.0}, "eta"),
        ("kto_loss", {"beta": 0.1, "desirable_weight": -1.0}, "desirable_weight"),
        ("sppo_loss", {"eta": -1.0}, "eta"),
        ("simpo_loss", {"beta": 2.0, "gamma": -1.0}, "gamma"),
        ("orpo_loss", {"weight": -0.1}, "weight"),
        ("cpl_loss", {"bias": 1.5}, "bias"),
        ("cpl_loss", {"discount": 1.5}, "discount"),
        ("cpl_loss", {"alpha": 0.0}, "alpha"),
    ],
)
def test_wrong_numbers_are_named(name, hyper, named):
    case = CASES[name]
    with pytest.raises(ValueError, match=named):
        getattr(losses, name)(*arrays(case, (3,)), **hyper)
