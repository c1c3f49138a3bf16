import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from aae_jax.evaluation.samples import (
    _batches,
    _FeatureNetwork,
    _labelled,
    _shuffled_blocks,
    _StridedConvolution,
    frechet_distance,
    kernel_distance,
    nearest_training_images,
    precision_recall,
    sample_distances,
    train_classifier,
)

KEY = jax.random.key(0)


def normal(seed, n, d, std=1.0, shift=0.0):
    values = np.random.default_rng(seed).normal(size=(n, d)) * std + shift
    return values.astype(np.float32)


def with_moments(seed, n, mean, covariance):
    """Rows whose sample mean and covariance are exactly these."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(0)
    z = np.linalg.solve(np.linalg.cholesky(np.atleast_2d(np.cov(z.T))), z.T).T
    return z @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_two_gaussians_is_the_closed_form():
    a = with_moments(0, 50, [0, 0, 0], np.diag([1.0, 4, 9]))
    b = with_moments(1, 60, [1, 0, -2], np.diag([16.0, 1, 9]))
    # Diagonal covariances: 5 for the means, and (1-4)^2 + (2-1)^2 + (3-3)^2 for the widths.
    assert frechet_distance(a, b) == pytest.approx(15)


@pytest.mark.parametrize("n", [100, 4])  # with 4 rows the covariances are singular
def test_frechet_is_the_formula_with_scipys_matrix_root(n):
    a, b = normal(0, n, 6) @ normal(2, 6, 6), normal(1, n + 3, 6)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_of_a_set_with_itself_is_zero_and_of_one_feature_the_widths():
    a = normal(0, 40, 8)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    x, y = with_moments(0, 9, [0], np.eye(1)), with_moments(1, 9, [1], 9 * np.eye(1))
    assert frechet_distance(x, y) == pytest.approx(1 + 4)


def test_frechet_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(normal(0, 1, 2), normal(1, 5, 2))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.full((3, 2), np.nan, np.float32), normal(1, 5, 2))


def polynomial_mmd(a, b):
    """The unbiased estimate by its definition, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x, y):
        return np.array([[(u @ v / len(u) + 1) ** 3 for v in y] for u in x])

    def within(x):
        return kernel(x, x)[~np.eye(len(x), dtype=bool)].mean()

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def test_kernel_distance_of_one_block_is_the_definition():
    a, b = normal(0, 30, 4), normal(1, 30, 4, std=2)
    distance = kernel_distance(a, b, KEY)
    assert distance.mean == pytest.approx(polynomial_mmd(a, b), rel=1e-9)
    assert np.isnan(distance.standard_error)


def test_kernel_distance_of_equal_distributions_is_zero_within_its_error():
    distance = kernel_distance(normal(0, 4000, 5), normal(1, 3000, 5), KEY, block_size=50)
    assert abs(distance.mean) < 3 * distance.standard_error
    assert distance.standard_error < 0.02
    values = [kernel_distance(normal(i, 40, 2), normal(i + 99, 40, 2), KEY)[0] for i in range(9)]
    assert min(values) < 0 < max(values)


def test_blocks_share_out_the_rows_in_a_new_order():
    rows = np.arange(23, dtype=np.float32)[:, None]
    blocks = _shuffled_blocks(rows, np.random.default_rng(0), 23, 4)
    assert [len(block) for block in blocks] == [6, 6, 6, 5]
    together = np.concatenate(blocks)
    np.testing.assert_array_equal(np.sort(together, axis=0), rows)
    assert not np.array_equal(together, rows)
    drawn = np.concatenate(_shuffled_blocks(rows, np.random.default_rng(0), 10, 2))
    assert len(np.unique(drawn)) == 10 and drawn.max() > 9


def test_kernel_distance_of_distant_sets_is_large_and_keys_decide():
    a, b = normal(0, 100, 3), normal(1, 100, 3, shift=2)
    distance = kernel_distance(a, b, KEY, block_size=20)
    assert distance.mean > 5 * distance.standard_error
    assert distance == kernel_distance(a, b, KEY, block_size=20)
    assert distance != kernel_distance(a, b, jax.random.key(1), block_size=20)
    with pytest.raises(ValueError, match="two rows"):
        kernel_distance(a[:1], b, KEY)


def manifold_oracle(points, manifold, k):
    """Fraction of points in the union of k-th neighbour balls, in float64, by sorting."""
    points, manifold = points.astype(np.float64), manifold.astype(np.float64)
    radii = np.sort(cdist(manifold, manifold), axis=1)[:, k]  # the 0-th is the point itself
    return (cdist(points, manifold) <= radii).any(1).mean()


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_definition(k):
    # More rows than a block of distances, the sizes differ, and the data are off the origin.
    real, generated = normal(0, 300, 4, shift=20), normal(1, 280, 4, std=1.5, shift=20.5)
    ours = precision_recall(real, generated, k)
    assert ours.precision == pytest.approx(manifold_oracle(generated, real, k))
    assert ours.recall == pytest.approx(manifold_oracle(real, generated, k))


def test_identical_sets_have_precision_and_recall_one_with_repeated_rows_too():
    real = normal(0, 50, 6, shift=3)
    assert precision_recall(real, real[::-1]) == (1, 1)
    repeated = np.repeat(real, 5, axis=0)  # every radius is zero
    assert precision_recall(repeated, repeated) == (1, 1)


def test_disjoint_sets_have_neither_and_a_collapsed_mode_has_precision_only():
    real = normal(0, 100, 6)
    assert precision_recall(real, normal(1, 100, 6, shift=50)) == (0, 0)
    collapsed = normal(2, 100, 6, std=0.01)
    assert precision_recall(real, collapsed) == (1, 0)
    assert precision_recall(collapsed, real) == (0, 1)


def test_precision_needs_more_rows_than_neighbours():
    for k in (0, 5):
        with pytest.raises(ValueError, match="neighbours"):
            precision_recall(normal(0, 5, 2), normal(1, 9, 2), k)


def test_nearest_training_images_are_found_and_copies_are_at_zero():
    train, samples = normal(0, 70, 30, shift=0.5), normal(1, 300, 30, shift=0.5)
    samples[17] = train[3]
    nearest = nearest_training_images(samples, jnp.asarray(train))
    distances = cdist(samples.astype(np.float64), train.astype(np.float64))
    np.testing.assert_array_equal(nearest.indices, distances.argmin(1))
    np.testing.assert_allclose(nearest.distances, distances.min(1), rtol=1e-6)
    assert nearest.indices[17] == 3 and nearest.distances[17] == 0
    with pytest.raises(ValueError, match="no training image"):
        nearest_training_images(samples, train[:0])


def test_sample_distances_gather_the_others():
    real, generated = normal(0, 200, 5), normal(1, 150, 5, std=1.2)
    gathered = sample_distances(real, generated, KEY)
    assert gathered.frechet == frechet_distance(real, generated)
    assert (gathered.precision, gathered.recall) == precision_recall(real, generated)
    assert gathered.kernel == kernel_distance(real, generated, KEY).mean
    same = sample_distances(real, real[::-1], KEY)
    assert same.frechet < 1e-9 and same.precision == same.recall == 1


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 7, 1), (3, 5, 8, 2)])
def test_the_strided_convolution_is_xlas(shape):
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    layer = _StridedConvolution(4)
    params = layer.init(KEY, images)
    kernel = params["params"]["Dense_0"]["kernel"].reshape(3, 3, shape[-1], 4)
    expected = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer.apply(params, images), expected, atol=1e-5)


@pytest.fixture(scope="module")
def digits():
    """The 8x8 digits as (train images, train labels, test images, test labels)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, :, :, None] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


@pytest.fixture(scope="module")
def classifier(digits):
    return train_classifier(*digits[:2], 10, KEY)


def accuracy(classifier, images, labels):
    return float((np.asarray(classifier.logits(images)).argmax(1) == labels).mean())


def test_the_classifier_reads_digits(digits, classifier):
    assert accuracy(classifier, *digits[2:]) >= 0.95


def test_features_are_of_order_one_and_take_any_number_of_images(digits, classifier):
    features = np.asarray(classifier.features(digits[0]))
    assert features.shape == (1200, 128) and features.min() >= 0
    assert np.sqrt(np.mean(features**2)) == pytest.approx(1, rel=1e-4)
    for n in (1, 3):
        few = classifier.features(jnp.asarray(digits[0][:n]))
        np.testing.assert_allclose(few, features[:n], atol=1e-4)
        assert classifier.logits(digits[0][:n]).shape == (n, 10)


def test_real_digits_are_nearer_in_features_than_noise_or_one_class(digits, classifier):
    train, _, test, labels = digits
    real = classifier.features(train[: len(test)])
    held_out = sample_distances(real, classifier.features(test), KEY)
    noise = np.random.default_rng(0).uniform(size=test.shape).astype(np.float32)
    noisy = sample_distances(real, classifier.features(noise), KEY)
    assert noisy.frechet > 5 * held_out.frechet and noisy.kernel > 5 * held_out.kernel
    assert held_out.precision > 0.7 and held_out.recall > 0.7
    one_class = sample_distances(real, classifier.features(test[labels == 1]), KEY)
    assert one_class.precision > 0.7 and one_class.recall < 0.2


def test_rows_are_classified_and_the_key_decides(digits):
    rows = [digits[i].reshape(len(digits[i]), -1) for i in (0, 2)]

    def trained(seed):
        return train_classifier(rows[0], digits[1], 10, jax.random.key(seed), num_steps=200)

    first = trained(0)
    assert accuracy(first, rows[1], digits[3]) >= 0.95
    np.testing.assert_array_equal(first.logits(rows[1]), trained(0).logits(rows[1]))
    assert not np.array_equal(first.logits(rows[1]), trained(1).logits(rows[1]))


def test_unknown_labels_are_left_out():
    images, labels = normal(0, 5, 3), np.array([-1, 2, 0, -1, 1], np.int32)
    known, known_labels = _labelled(images, labels, 3)
    np.testing.assert_array_equal(known, images[[1, 2, 4]])
    np.testing.assert_array_equal(known_labels, [2, 0, 1])


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (48, 48, 1), (5, 9, 2)])
def test_images_of_any_size_are_taken(shape):
    network, images = _FeatureNetwork(3, 64), jnp.zeros((2, *shape))
    params = jax.eval_shape(network.init, KEY, images)
    features, logits = jax.eval_shape(network.apply, params, images)
    assert features.shape == (2, 64) and logits.shape == (2, 3)
    # The convolutions leave at most 7 places a side, which bounds the dense layer.
    assert params["params"]["Dense_0"]["kernel"].shape[0] <= 7 * 7 * 64


def test_every_pass_visits_every_image_once_in_a_new_order():
    order = _batches(KEY, 10, 7, 4).ravel()
    for visited in (order[:10], order[10:20]):
        np.testing.assert_array_equal(np.sort(visited), np.arange(10))
    assert len(order) == 28 and not np.array_equal(order[:10], order[10:20])


def test_fewer_images_than_a_batch_and_constant_columns_are_no_trouble():
    rows = normal(0, 6, 4)
    rows[:, 1] = 0.1
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    classifier = train_classifier(rows, labels, 3, KEY, num_steps=200)
    assert accuracy(classifier, rows, labels) == 1
    # A value that the constant column never took moves the logits, but does not own them.
    moved = rows.copy()
    moved[:, 1] = 0.2
    assert accuracy(classifier, moved, labels) >= 0.5


def test_bad_training_sets_are_named():
    images, labels = normal(0, 4, 3), np.array([0, 1, 2, -1], np.int32)
    with pytest.raises(ValueError, match="label 2 is not below num_classes = 2"):
        train_classifier(images, labels, 2, KEY)
    with pytest.raises(ValueError, match="no image has a known label"):
        train_classifier(images, np.full(4, -1, np.int32), 2, KEY)
    with pytest.raises(ValueError, match="floats in"):
        _labelled(images.astype(np.uint8), labels, 3)
    with pytest.raises(ValueError, match=r"\[n, h, w, c\] or \[n, features\]"):
        train_classifier(images[:, :, None], labels, 3, KEY)
