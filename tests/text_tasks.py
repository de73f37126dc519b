"""The tasks of this package's benchmarks of long texts."""

from namm_transfer.evals.tasks.text.questions import benchmarks

TASKS = {task.id: task for item in benchmarks().values() for task in item.tasks}
"""`BENCHMARK:TASK` -> task."""
