"""Slates drawn from a policy: the best few candidates, then others at random without repeats."""

from __future__ import annotations

import tensorflow as tf

from tfrz.config import require


def boltzmann_slate(
    logits: tf.Tensor,
    k: int,
    deterministic: int,
    temperature: float = 1.0,
    seed: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """A page of k: the `deterministic` most probable candidates, the others drawn one by one.

    The draws are Gumbel-top-k: without replacement, each in proportion to its probability among the
    remaining candidates (Plackett and Luce), so that the page is always full.

    Args:
      logits: of the candidates, `[batch, candidates]`; -inf for those that may not be shown.
      k: K, places of the page, at most the number of candidates.
      deterministic: K', places filled without chance, 0 to k.
      temperature: T of the draws.
      seed: int `[2]`, for `tf.random.stateless_uniform`; other draws at every call by default.

    Returns:
      `positions` int32 `[batch, k]`, the candidates in the order of their places;
      `log_probability` `[batch, k]`, of each draw given the earlier ones (0 for the deterministic
      places). A log needs it, K', T and the logits.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> logits = tf.constant([[0.0, 2.0, 1.0]])
      >>> slate = boltzmann_slate(logits, k=2, deterministic=2)
      >>> print(slate["positions"].numpy(), slate["log_probability"].numpy())
      [[1 2]] [[0. 0.]]

    Reference:
      Chen et al. (arXiv 1812.02353), section 5.
    """
    require(k >= 1, "k", "must be at least 1")
    require(0 <= deterministic <= k, "deterministic", "must be 0 to k")
    require(temperature > 0, "temperature", "must be above 0")
    logits = tf.cast(logits, tf.float32)
    known = logits.shape[1]
    require(known is None or k <= known, "k", f"is {k}, there are {known} candidates")
    rows, count = tf.shape(logits)[0], tf.shape(logits)[1]
    order = tf.argsort(logits, axis=1, direction="DESCENDING", stable=True)
    sorted_logits = tf.gather(logits, order, batch_dims=1)
    certain = order[:, :deterministic]
    rest = sorted_logits[:, deterministic:] / temperature
    if seed is None:
        # Seeds of 0: other draws wherever the graph is loaded. tf.random.uniform would freeze the
        # seed of the trainer into a SavedModel, and every server would draw the same.
        uniform = tf.raw_ops.RandomUniform(shape=tf.shape(rest), dtype=tf.float32, seed=0, seed2=0)
        uniform = tf.maximum(uniform, 1e-20)
    else:
        uniform = tf.random.stateless_uniform(tf.shape(rest), seed, 1e-20, 1.0)
    noise = -tf.math.log(-tf.math.log(uniform))
    drawn = tf.math.top_k(rest + noise, k - deterministic).indices
    chosen = tf.gather(rest, drawn, batch_dims=1)
    # The candidates before each draw: all but those drawn earlier.
    taken = tf.cumsum(tf.one_hot(drawn, count - deterministic), axis=1, exclusive=True) > 0
    left = tf.where(taken, tf.constant(float("-inf")), rest[:, None, :])
    steps = chosen - tf.reduce_logsumexp(left, axis=-1)
    return {
        "positions": tf.concat([certain, tf.gather(order, drawn + deterministic, batch_dims=1)], 1),
        "log_probability": tf.concat([tf.zeros([rows, deterministic]), steps], axis=1),
    }
