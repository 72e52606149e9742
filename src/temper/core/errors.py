"""The errors that temper raises, sorted by who must act.

    TemperError
    ├── UsageError            the caller: an option, a folder, a budget
    │   └── BudgetError       the budget ends before anything could be measured
    ├── TaskError             the author of the task
    │   ├── CaptureError      the model cannot become a graph
    │   ├── DataError         a part of the data is unfit
    │   └── MetricError       the metric fails or gives no number
    ├── HostError             the owner of the machine
    │   └── MissingExtra      a package is not installed
    ├── ArtifactError         whoever ships the artifact: tampered, truncated, too new
    ├── PlugError             the author of a technique, runtime or search
    └── TrialError            nobody: it costs one trial, and the run goes on
        ├── NoEffect          a technique changed nothing
        └── WorkerError       the process crashed, hung or ran out of memory

An unmet limit is a result, not an error. Every message says what happened, where, why, and what to do next.
"""


class TemperError(Exception):
    """The root: catching it catches everything that temper raises on purpose."""


class UsageError(TemperError):
    """A command, option or folder that cannot be used as given."""


class BudgetError(UsageError):
    """The budget ended before a single trial could be measured."""


class TaskError(TemperError):
    """The task cannot be used: its file, model, data or metric."""


class CaptureError(TaskError):
    """`torch.export` cannot turn the model into a graph."""


class DataError(TaskError):
    """A part of the data is empty, malformed, mislabelled or shared with another part."""


class MetricError(TaskError):
    """The metric raised, returned no number, or cannot score these outputs."""


class HostError(TemperError):
    """This machine lacks something: disk space, a permission, a package."""


class MissingExtra(HostError):
    """A package that is needed here is not installed; the message carries the command that adds it."""


class ArtifactError(TemperError):
    """An artifact that must not be loaded: a file is missing, altered, too new or outside its folder."""


class PlugError(TemperError):
    """A plug file breaks the contract of its folder."""


class TrialError(TemperError):
    """One trial failed; the journal keeps the reason and the run goes on."""


class NoEffect(TrialError):
    """A technique left the graph or the artifact as it was: a no-op is an error."""


class WorkerError(TrialError):
    """A worker process crashed, hung past its time limit or passed its memory limit."""
