"""Moved to `namm_transfer.evals.tasks.rl.d4rl`."""

from namm_transfer._moved import moved

moved(__name__, "namm_transfer.evals.tasks.rl.d4rl")
