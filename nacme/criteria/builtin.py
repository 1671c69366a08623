"""The package's own criteria: direction, data seen, cost and source of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from nacme.criteria import records as record_criteria
from nacme.criteria.registry import Criterion, Need, Sees, register

NAC = "Liu et al., Neuron activation coverage: rethinking OOD detection and generalization, ICLR 2024"
DOMAINBED = "Gulrajani & Lopez-Paz, In search of lost domain generalization, ICLR 2021"

PASS = "one pass over the validation splits"


def _lazily(function: str, module: str) -> Callable[[Any], float]:
    """Name a function of a module without importing torch."""

    def compute(data: Any) -> float:
        return float(getattr(importlib.import_module(module), function)(data))

    return compute


def _network(
    name: str,
    better: str,
    needs: tuple[Need, ...],
    source: str,
    description: str,
    *,
    sees: Sees = "ind",
    cost: str = PASS,
    optional: bool = False,
    module: str = "nacme.criteria.network",
) -> Criterion:
    """Build a criterion that a function of that name computes from the outputs collected in the pass."""
    return Criterion(
        name=name,
        higher_is_better=better == "higher",
        sees=sees,
        needs=needs,
        cost=cost,
        source=source,
        description=description,
        compute=_lazily(name, module),
        optional=optional,
    )


def _coverage(
    name: str, source: str, description: str, changes: dict[str, Any] | None = None, *, control: bool = False
) -> Criterion:
    """Build a criterion that is coverage with changed settings, or one that the recorder knows of."""
    return Criterion(
        name,
        higher_is_better=True,
        sees="ind",
        needs=("features", "gradients"),
        cost=PASS,
        source=source,
        description=description,
        control=control,
        changes=changes,
    )


for _builtin in (
    Criterion(
        name="nac_me",
        higher_is_better=True,
        sees="ind",
        needs=("features", "gradients"),
        cost=PASS,
        source=f"{NAC}, section 3.3",
        description="NAC-ME: the part of the neurons' state space that in-distribution data covers.",
    ),
    Criterion(
        name="val_acc",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="none: DomainBed records it",
        source=f"{DOMAINBED}, section 3 (training-domain validation)",
        description="Mean accuracy on the held-out splits of the training envs.",
        compute=lambda df: df["val_acc"],
    ),
    Criterion(
        name="val_loss",
        higher_is_better=False,
        sees="ind",
        needs=("logits",),
        cost=PASS,
        source="common practice in early stopping",
        description="Mean over training envs of the mean cross-entropy on their held-out splits.",
    ),
    Criterion(
        name="last",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="none",
        source="the baseline without early stopping",
        description="The step itself: the last checkpoint is the best.",
        compute=record_criteria.last,
    ),
    Criterion(
        name="oracle",
        higher_is_better=True,
        sees="oracle",
        needs=("records",),
        cost="none, but it looks at the test labels",
        source="the upper bound",
        description="Test accuracy itself: regret 0 by construction.",
        compute=record_criteria.oracle,
    ),
    Criterion(
        name="domainbed_oracle",
        higher_is_better=True,
        sees="oracle",
        needs=("records",),
        cost="none, but it looks at test labels",
        source=f"{DOMAINBED}, section 3 (test-domain validation)",
        description="Accuracy on the test env's held-out split, last checkpoint of each run only.",
        compute=record_criteria.domainbed_oracle,
        partial=True,
    ),
    Criterion(
        name="leave_one_out",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="a run for every pair of test envs",
        source=f"{DOMAINBED}, section 3 (leave-one-domain-out cross-validation)",
        description="Mean accuracy on each training env when training leaves it out too.",
        compute=record_criteria.leave_one_out,
        partial=True,
    ),
    Criterion(
        name="val_acc_worst",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="none: DomainBed records it",
        source="Sagawa et al., Distributionally robust neural networks, ICLR 2020 (worst-group accuracy)",
        description="Accuracy on the held-out split of the worst training env.",
        compute=lambda df: df["val_acc_worst"],
    ),
    Criterion(
        name="nac_me_robust",
        higher_is_better=True,
        sees="ind",
        needs=("features", "gradients"),
        cost=PASS,
        source=f"{NAC}; the unit, the shares and the minimum over environments are ours",
        description="Coverage by contributions in nats and shares of an environment's samples; the least of them.",
        counter=lambda: importlib.import_module("nacme.criteria.robust").RobustCoverage(),
    ),
    _coverage(
        "nac_me_auto",
        f"{NAC}; the scale is ours",
        "NAC-ME with alpha set by the spread of z * g.",
        {"alpha": "auto"},
    ),
    # alone, activation and gradient are on scales of their own
    _coverage(
        "nac_activation",
        f"{NAC}, ablation; the scale is ours",
        "NAC-ME of the activation alone, alpha auto.",
        {"alpha": "auto", "quantity": "activation"},
    ),
    _coverage(
        "nac_gradient",
        "ablation of ours",
        "NAC-ME of the gradient alone, alpha auto.",
        {"alpha": "auto", "quantity": "gradient"},
    ),
    _coverage(
        "nac_me_all",
        f"{NAC}; the authors count correct samples only",
        "NAC-ME of all samples: never accuracy.",
        {"correct_only": False},
    ),
    _coverage(
        "sham_count",
        "control of ours",
        "What nac_me knows of accuracy: the share of samples that it counts.",
        control=True,
    ),
    _coverage(
        "sham_permuted",
        "control of ours",
        "nac_me of another checkpoint's states, as many as this one counts; written when a run ends.",
        control=True,
    ),
    _network(
        "val_loss_variance",
        "lower",
        ("logits",),
        "Krueger et al., Out-of-distribution generalization via risk extrapolation, ICML 2021",
        "Variance over training envs of the mean cross-entropy on their held-out splits.",
    ),
    _network(
        "ece",
        "lower",
        ("logits",),
        "Guo et al., On calibration of modern neural networks, ICML 2017; torchmetrics",
        "Expected calibration error over 15 bins.",
    ),
    _network(
        "entropy",
        "lower",
        ("logits",),
        "Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021",
        "Mean entropy of the predictions, in nats.",
    ),
    _network(
        "confidence",
        "higher",
        ("logits",),
        "Hendrycks & Gimpel, A baseline for detecting misclassified examples, ICLR 2017",
        "Mean probability of the predicted class.",
    ),
    _network(
        "feature_norm",
        "higher",
        ("features",),
        "Xu et al., Larger norm more transferable, ICCV 2019",
        "Mean Euclidean norm of the features.",
    ),
    _network(
        "effective_rank",
        "higher",
        ("features",),
        "Garrido et al., RankMe, ICML 2023 (arXiv 2210.02885)",
        "Exponential of the entropy of the features' normalized singular values.",
    ),
    _network(
        "coral_distance",
        "lower",
        ("features",),
        "Sun & Saenko, Deep CORAL, ECCV Workshops 2016",
        "Difference between training envs of the features' means and covariances.",
    ),
    _network(
        "mmd",
        "lower",
        ("features",),
        "Gretton et al., A kernel two-sample test, JMLR 2012",
        "Unbiased squared maximum mean discrepancy between training envs, median heuristic.",
    ),
    _network(
        "val_acc_minus_discrepancy",
        "higher",
        ("logits", "features"),
        "Lyu et al., ICASSP 2023 (arXiv 2304.00629); the weight of 1 is ours",
        "Validation accuracy minus the maximum mean discrepancy between training envs.",
    ),
    _network(
        "weight_norm",
        "lower",
        ("weights",),
        "Neyshabur et al., Norm-based capacity control in neural networks, COLT 2015",
        "Euclidean norm of all parameters.",
        cost="none",
    ),
    _network(
        "gradient_norm",
        "lower",
        ("weights",),
        "Zhao et al., Penalizing gradient norm, ICML 2022",
        "Norm of the gradient of the mean validation loss.",
        cost="a further pass, with gradients",
        optional=True,
    ),
    _network(
        "sharpness",
        "lower",
        ("weights",),
        "Foret et al., Sharpness-aware minimization, ICLR 2021; radius 0.05",
        "Rise of the mean validation loss after one ascent step.",
        cost="two further passes, one with gradients",
        optional=True,
    ),
    _network(
        "atc",
        "higher",
        ("logits",),
        "Garg et al., Leveraging unlabeled data to predict OOD performance, ICLR 2022 (arXiv 2201.04234)",
        "Target accuracy predicted by average thresholded confidence (negative entropy).",
        sees="target_unlabeled",
    ),
    _network(
        "doc",
        "higher",
        ("logits",),
        "Guillory et al., Predicting with confidence on unseen distributions, ICCV 2021",
        "Validation accuracy minus the difference of mean confidences.",
        sees="target_unlabeled",
    ),
    _network(
        "nuclear_norm",
        "higher",
        ("logits",),
        "Deng et al., Confidence and dispersity speak, ICML 2023",
        "Nuclear norm of the target predictions, divided by its largest value.",
        sees="target_unlabeled",
    ),
    _network(
        "nac_ue_mean",
        "higher",
        ("features", "gradients"),
        f"{NAC}, section 3.2, with the settings published for CIFAR-10",
        "Mean NAC-UE likelihood of half of the validation samples under the states of the other half.",
        optional=True,
        module="nacme.ood.criteria",
    ),
    _network(
        "line_energy",
        "higher",
        ("features",),
        "Ahn et al., LINe, CVPR 2023 (arXiv 2303.13995), with the settings published for CIFAR-10",
        "Mean LINe energy of half of the validation samples, contributions from the other half.",
        cost="a further pass",
        optional=True,
        module="nacme.ood.criteria",
    ),
    _network(
        "nap_mean",
        "higher",
        ("features",),
        "Wan et al., Neural Activation Prior (arXiv 2402.18162)",
        "Mean Neural Activation Prior of the validation samples at the last feature map.",
        cost="a further pass",
        optional=True,
        module="nacme.ood.criteria",
    ),
):
    register(_builtin)
