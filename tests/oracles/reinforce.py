"""NumPy float64 oracles of top-K off-policy REINFORCE, written from the specification."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tests.oracles.temporal import sigmoid, softmax

Weights = dict[str, np.ndarray]


def discounted_returns(
    rewards: np.ndarray, gamma: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """`R_t = sum_{t' >= t} gamma^(t' - t) r_t'`, one term at a time."""
    r = np.asarray(rewards, "float64")
    if mask is not None:
        r = np.where(mask, r, 0.0)
    out = np.zeros(r.shape)
    for row, t in itertools.product(*map(range, r.shape)):
        out[row, t] = sum(gamma ** (u - t) * r[row, u] for u in range(t, r.shape[1]))
    return out


def multiplier(pi: np.ndarray, k: int) -> np.ndarray:
    """`lambda_K = K (1 - pi)^(K - 1)`."""
    return k * (1 - np.asarray(pi, "float64")) ** (k - 1)


def appearance(pi: np.ndarray, k: int) -> np.ndarray:
    """`alpha = 1 - (1 - pi)^K`."""
    return 1 - (1 - np.asarray(pi, "float64")) ** k


def coefficients(
    pi: np.ndarray,
    beta: np.ndarray,
    returns: np.ndarray,
    k: int,
    cap: float | None = None,
    weights: str = "capped",
    kind: str = "lambda",
    cap_after: bool = False,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """What multiplies the gradient of log pi; 0 where the mask is False."""
    pi, beta = np.asarray(pi, "float64"), np.asarray(beta, "float64")
    real = np.ones(pi.shape, bool) if mask is None else np.asarray(mask, bool)
    bound = math.inf if cap is None else cap
    factor = multiplier(pi, k) if kind == "lambda" else appearance(pi, k) / pi
    omega = np.ones(pi.shape) if weights == "none" else pi / beta
    if cap_after:
        product = np.minimum(omega * factor, bound)
        return np.where(real, product * returns, 0.0)
    if weights != "none":
        omega = np.minimum(omega, bound)
    if weights == "normalized":
        omega = omega * real.sum() / omega[real].sum()
    return np.where(real, omega * factor * returns, 0.0)


def log_prob_gradient(logits: np.ndarray, action: int) -> np.ndarray:
    """Of `log softmax(logits)[action]`: `e_a - pi`."""
    return np.eye(len(logits))[action] - softmax(np.asarray(logits, "float64"))


def _negatives(row: int, logits: np.ndarray, hits: np.ndarray | None) -> list[int]:
    return [j for j in range(logits.shape[1]) if hits is None or not hits[row, j]]


def sampled_log_prob(
    positive: np.ndarray,
    negatives: np.ndarray,
    log_expected: np.ndarray,
    hits: np.ndarray | None = None,
) -> np.ndarray:
    """The probability form: negatives corrected, the positive not; `[batch]`, `[batch, S]`."""
    expected = np.exp(np.broadcast_to(log_expected, negatives.shape))
    out = []
    for row, own in enumerate(positive):
        total = math.exp(own)
        for j in _negatives(row, negatives, hits):
            total += math.exp(negatives[row, j]) / expected[row, j]
        out.append(own - math.log(total))
    return np.array(out)


def sampled_loss(
    positive: np.ndarray,
    negatives: np.ndarray,
    log_expected_positive: np.ndarray,
    log_expected: np.ndarray,
    hits: np.ndarray | None = None,
) -> np.ndarray:
    """The loss form: all corrected."""
    own = np.asarray(positive) - log_expected_positive
    others = np.asarray(negatives) - log_expected
    out = []
    for row in range(len(own)):
        total = math.exp(own[row])
        for j in _negatives(row, others, hits):
            total += math.exp(others[row, j])
        out.append(math.log(total) - own[row])
    return np.array(out)


def chaos_free_step(w: Weights, s: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One step of one user, in the paper's orientation: every matrix stands left of its vector."""
    z = sigmoid(w["U_z"] @ s + w["W_z"] @ u + w["b_z"])
    i = sigmoid(w["U_i"] @ s + w["W_i"] @ u + w["b_i"])
    return z * np.tanh(s) + i * np.tanh(w["W_a"] @ u)


def chaos_free_states(
    w: Weights,
    inputs: np.ndarray,
    mask: np.ndarray | None = None,
    initial: np.ndarray | None = None,
) -> np.ndarray:
    """s_0 ... s_T of every user, `[batch, time + 1, units]`; padded steps carry the state on."""
    batch, time = inputs.shape[:2]
    units = len(w["b_z"])
    out = np.zeros((batch, time + 1, units))
    for row in range(batch):
        s = np.zeros(units) if initial is None else np.asarray(initial[row], "float64")
        out[row, 0] = s
        for t in range(time):
            if mask is None or mask[row, t]:
                s = chaos_free_step(w, s, np.asarray(inputs[row, t], "float64"))
            out[row, t + 1] = s
    return out


def ordered_draws(logits: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of `count` without replacement (Plackett and Luce)."""
    p = softmax(np.asarray(logits, "float64"))
    found = {}
    for drawn in itertools.permutations(range(len(p)), count):
        probability, left = 1.0, 1.0
        for item in drawn:
            probability *= p[item] / left
            left -= p[item]
        found[drawn] = probability
    return found


def inclusion(logits: np.ndarray, count: int) -> np.ndarray:
    """Probability that each is among `count` draws without replacement."""
    out = np.zeros(len(logits))
    for drawn, probability in ordered_draws(logits, count).items():
        out[list(drawn)] += probability
    return out


def ascend(
    rewards: np.ndarray,
    steps: int,
    lr: float,
    k: int = 1,
    beta: np.ndarray | None = None,
) -> np.ndarray:
    """Where exact gradient ascent from equal logits ends.

    With `beta` the naive objective `sum beta r log pi`, else `sum r (1 - (1 - pi)^K)`.
    """
    logits = np.zeros(len(rewards))
    for _ in range(steps):
        pi = softmax(logits)
        gain = beta * rewards if beta is not None else pi * multiplier(pi, k) * rewards
        logits = logits + lr * (gain - gain.sum() * pi)
    return softmax(logits)
