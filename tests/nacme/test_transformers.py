"""Coverage as a metric of Hugging Face's Trainer: small vision and text networks, no download."""

import numpy as np
import pytest
import torch

import nacme
from nacme.settings import CoverageSettings

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")

SETTINGS = CoverageSettings(alpha=20.0, bins=20, fill=2)


def vision():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
    return transformers.ViTForImageClassification(config)


def digits(seed, count):
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.random.default_rng(seed).permutation(len(data.data))[:count]
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return [{"pixel_values": images[i], "labels": int(data.target[i])} for i in chosen]


def text():
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 20}
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(num_labels=2, **sizes))


def sentences(seed, count):
    rng = np.random.default_rng(seed)
    tokens = torch.tensor(rng.integers(1, 20, (count, 6)))
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": int(t[0] > 9)} for t in tokens]


def trainer(tmp_path, model, train, val, *callbacks, **options):
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        eval_strategy="epoch", save_strategy="epoch", learning_rate=1e-2, report_to="none", disable_tqdm=True,
        use_cpu=True, **options,
    )  # fmt: skip
    return transformers.Trainer(model, args, train_dataset=train, eval_dataset=val, callbacks=[*callbacks])


@pytest.mark.parametrize(("model", "data", "count"), [(vision, digits, 200), (text, sentences, 64)])
def test_the_best_model_is_that_of_the_widest_coverage(tmp_path, model, data, count):
    seen = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trained = trainer(
        tmp_path, model(), data(1, count), data(2, count), nacme.transformers.Coverage(SETTINGS), Logger(),
        metric_for_best_model="eval_nac_me", greater_is_better=True, load_best_model_at_end=True,
    )  # fmt: skip
    trained.train()
    values = [entry["eval_nac_me"] for entry in trained.state.log_history if "eval_nac_me" in entry]
    assert len(values) == 3
    assert all(0 < value < 1 for value in values)
    assert trained.state.best_metric == max(values)
    assert [logs["eval_nac_me"] for logs in seen if "eval_nac_me" in logs] == values
    assert {"eval_loss", "eval_val_loss", "eval_ece"} <= next(
        e for e in trained.state.log_history if "eval_ece" in e
    ).keys()
    # what is loaded at the end measures as it did when it was best
    found = nacme.measure(trained.model, trained.get_eval_dataloader(), None, 20.0, 20, 2)
    assert found.nac_me == pytest.approx(max(values), abs=1e-6)
    assert trained.evaluate()["eval_nac_me"] == pytest.approx(max(values), abs=1e-6)


def test_evaluation_sets_by_name_are_measured_each_and_tests_are_not(tmp_path):
    val = {"A": digits(2, 100), "B": digits(3, 100)}
    used = trainer(tmp_path, vision(), digits(1, 64), val, nacme.transformers.Coverage(SETTINGS))
    metrics = used.evaluate()
    for name, data in val.items():
        expected = nacme.measure(used.model, used.get_eval_dataloader(data), None, 20.0, 20, 2)
        assert metrics[f"eval_{name}_nac_me"] == pytest.approx(expected.nac_me)
    assert "test_nac_me" not in used.evaluate(digits(4, 50), metric_key_prefix="test")


def test_training_goes_as_without_it(tmp_path):
    weights = []
    for callbacks in ([], [nacme.transformers.Coverage(SETTINGS)]):
        used = trainer(tmp_path, vision(), digits(1, 100), digits(2, 100), *callbacks)
        used.train()
        weights.append(used.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
