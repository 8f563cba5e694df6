"""What lies in an exported model beside its graph; the answers are the battery's business."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrz.config import read_yaml
from tfrz.zoo.train import train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained and exported model."""
    out = tmp_path_factory.mktemp("exported") / "run"
    overrides = ["data.options={rows: 2000}", "trainer.epochs=1", "export.warmup_examples=5"]
    train("dcn_v2", "simulated", out, None, overrides, progress=False)
    return out / "model" / "1"


def test_the_assets_say_what_it_is(model):
    config = read_yaml(model / "assets" / "run_config.yaml")
    assert config["name"] == "dcn_v2"
    assert config["data"]["options"] == {"rows": 2000}
    card = (model / "assets" / "card.md").read_text()
    assert "arxiv.org/abs/2008.13535" in card
    terms = json.loads((model / "assets" / "vocabularies.json").read_text())
    assert "user_xf" in terms


def test_warm_up_requests_are_in_the_form_that_servers_replay(model):
    path = model / "assets.extra" / "tf_serving_warmup_requests"
    loaded = tf.saved_model.load(str(model))
    sizes = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        tensors = {name: tf.constant(tf.make_ndarray(p)) for name, p in request.inputs.items()}
        loaded.signatures[request.model_spec.signature_name](**tensors)
        sizes.append(len(tensors["examples"]))
    assert sizes == [1, 2, 4]


def test_all_signatures_of_the_row_are_there(model):
    from tfrz.zoo import registry

    loaded = tf.saved_model.load(str(model))
    assert set(loaded.signatures) == set(registry.get("dcn_v2").signatures)
