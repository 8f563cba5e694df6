"""Shapes that would broadcast to something else are refused by every loss and every metric."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrz import metrics
from tfrz.errors import InputError
from tfrz.losses import distillation, reinforce, retrieval, slate
from tfrz.metrics import ranking, slates

N = 3
ROW = tf.constant([0.1, 0.4, 0.3])
COLUMN = ROW[:, None]
TABLE = tf.reshape(tf.range(12.0), [N, 4]) / 12
SQUARE = tf.constant(np.eye(N), tf.float32)
IDS, TRUE = tf.constant([1, 0, 2]), tf.constant([True, False, True])
STEPS, FREE = tf.zeros([N, 2, 4]), tf.ones([N, 2, 4], tf.bool)
CONSTANT = tf.fill([N, 4], 0.25)


def _calls():
    """Name to a function and its right arguments; each is then tried with one column for a row."""
    reinforced = reinforce.TopKOffPolicyReinforce(k=2)
    return {
        "log_loss": (metrics.log_loss, (ROW > 0.2, ROW)),
        "normalized_entropy": (metrics.normalized_entropy, (ROW > 0.2, ROW)),
        "calibration": (metrics.calibration, (ROW > 0.2, ROW)),
        "auc": (metrics.auc, (ROW > 0.2, ROW)),
        "mean_squared_error": (metrics.mean_squared_error, (ROW, ROW)),
        "rank_of": (ranking.rank_of, (TABLE, IDS)),
        "coverage": (metrics.coverage, (ROW,)),
        "gini": (metrics.gini, (ROW,)),
        "ndcg": (slates.ndcg, (ROW,)),
        "average_precision": (slates.average_precision, (ROW,)),
        "expected_reciprocal_rank": (slates.expected_reciprocal_rank, (ROW,)),
        "rank_gain": (slates.rank_gain, (ROW, IDS)),
        "softmax_loss": (retrieval.softmax_loss, (SQUARE, SQUARE, ROW, IDS)),
        "sampled_softmax_loss": (
            retrieval.sampled_softmax_loss,
            (ROW, SQUARE, SQUARE > 0, ROW, SQUARE),
        ),
        "candidate_logits": (retrieval.candidate_logits, (SQUARE, IDS, IDS, ROW, TRUE)),
        "candidate_softmax_loss": (retrieval.candidate_softmax_loss, (SQUARE, IDS, IDS, ROW, TRUE)),
        "log_expected_counts": (lambda counts: retrieval.log_expected_counts(counts, 2), (ROW,)),
        "discounted_returns": (
            lambda rewards, mask: reinforce.discounted_returns(rewards, 0.9, mask),
            (TABLE, TABLE > 0),
        ),
        "importance_weights": (reinforce.importance_weights, (ROW, ROW)),
        "normalized_weights": (reinforce.normalized_weights, (ROW, TRUE)),
        "sampled_log_prob": (reinforce.sampled_log_prob, (ROW, TABLE, TABLE, TABLE > 0)),
        "sampled_policy_loss": (
            reinforce.sampled_policy_loss,
            (ROW, TABLE, ROW, TABLE, TABLE > 0),
        ),
        "TopKOffPolicyReinforce": (reinforced, (ROW, ROW, ROW, TRUE, ROW)),
        "behavior_loss": (reinforce.behavior_loss, (ROW, TRUE)),
        "soft_targets": (
            lambda logits, labels: distillation.soft_targets("partial", logits, labels),
            (TABLE, IDS),
        ),
        "distillation_loss": (
            lambda *rows: distillation.distillation_loss(*rows, 0.5),
            (TABLE, IDS, CONSTANT),
        ),
        "rescaling_factor": (
            lambda *rows: distillation.rescaling_factor(*rows, 0.5),
            (TABLE, IDS, CONSTANT),
        ),
        "split_divergence": (distillation.split_divergence, (TABLE, IDS, CONSTANT)),
        "binary_distillation_loss": (
            lambda *rows: distillation.binary_distillation_loss(*rows, 0.5),
            (ROW, ROW, ROW),
        ),
        "binary_rescaling_factor": (
            lambda *rows: distillation.binary_rescaling_factor(*rows, 0.5),
            (ROW, ROW, ROW),
        ),
        "discrepancy_weights": (
            lambda *rows: distillation.discrepancy_weights(*rows, 5, 0.1),
            (TABLE, TABLE),
        ),
        "ranking_distillation_loss": (
            distillation.ranking_distillation_loss,
            (TABLE, TABLE, TABLE > 0),
        ),
        "relaxed_ranking_loss": (
            distillation.relaxed_ranking_loss,
            (TABLE, TABLE, TABLE > 0, TABLE > 0),
        ),
        "step_cross_entropy": (slate.step_cross_entropy, (STEPS, FREE, TABLE)),
        "step_hinge": (slate.step_hinge, (STEPS, FREE, TABLE)),
        "in_slate_order": (slate.in_slate_order, (TABLE, tf.zeros([N, 2], tf.int32))),
        "policy_gradient_loss": (slate.policy_gradient_loss, (ROW, ROW, ROW)),
    }


@pytest.mark.parametrize("name", list(_calls()))
def test_a_column_in_place_of_a_row_is_refused(name):
    function, arguments = _calls()[name]
    function(*arguments)
    for place, value in enumerate(arguments):
        wrong = list(arguments)
        wrong[place] = value[..., None]
        with pytest.raises(InputError):
            function(*wrong)


def test_unknown_dimensions_pass():
    @tf.function(input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64)])
    def ranks(scores, ids):
        return ranking.rank_of(scores, ids)

    assert ranks([[0.1, 0.9]], [1]).numpy().tolist() == [2]

    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec([None]), tf.TensorSpec([3])])
    def losses(log_beta, rewards, column):
        with pytest.raises(InputError, match=r"reward: expected the shape \[batch\] = \(3,\)"):
            slate.policy_gradient_loss(column, column[:, None])
        return reinforce.behavior_loss(log_beta), slate.policy_gradient_loss(rewards, rewards, 0.5)

    assert losses(1.0, [1.0, 2.0], [1.0, 2.0, 3.0])[0].numpy() == -1


@pytest.mark.parametrize("metric", [metrics.Calibration, metrics.NormalizedEntropy])
def test_streaming_metrics_refuse_another_number_of_predictions_or_weights(metric):
    for values in (([1.0, 0.0], [0.5]), ([1.0, 0.0], [0.5, 0.5], [1.0])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            metric().update_state(*values)
    one = metric()
    one.update_state([1.0, 0.0], [[0.5], [0.5]], [[1.0], [1.0]])
    assert float(one.result()) == pytest.approx(1.0)


def test_a_teachers_scores_of_padding_do_not_reach_the_gradient():
    for padding in (np.nan, np.inf, -np.inf):
        scores = tf.constant([[0.2, 0.1, padding]])
        mask = tf.constant([[True, True, False]])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(scores)
            losses = {
                "ranking": distillation.ranking_distillation_loss(
                    scores, distillation.position_weights(3, 1.0), mask
                ),
                "relaxed": distillation.relaxed_ranking_loss(scores, scores, mask, mask),
                "behavior": reinforce.behavior_loss(scores, mask),
            }
        for name, loss in losses.items():
            assert np.isfinite(loss.numpy()).all(), name
            gradient = tape.gradient(loss, scores).numpy()
            assert np.isfinite(gradient).all() and gradient[0, 2] == 0, name
