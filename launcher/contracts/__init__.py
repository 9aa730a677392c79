"""What the parts of launcher promise each other: tasks, strategies, backends, and the plain values that pass between them.

Nothing here imports torch: arrays are numpy's, models and tokenizers are named by protocol only.
"""

from launcher.contracts.backend import Backend, JobStatus
from launcher.contracts.predictions import Baseline, Boxes, Predictions
from launcher.contracts.task import LABELS, TARGETS, BuiltModel, Prepared, ShownRow, Task, epoch_rows
from launcher.contracts.tuning import (
    AdapterPlan,
    Component,
    Parameter,
    Phase,
    Probe,
    Role,
    Strategy,
    TuningGroup,
    TuningTable,
)

__all__ = [
    "LABELS",
    "TARGETS",
    "AdapterPlan",
    "Backend",
    "Baseline",
    "Boxes",
    "BuiltModel",
    "Component",
    "JobStatus",
    "Parameter",
    "Phase",
    "Predictions",
    "Prepared",
    "Probe",
    "Role",
    "ShownRow",
    "Strategy",
    "Task",
    "TuningGroup",
    "TuningTable",
    "epoch_rows",
]
