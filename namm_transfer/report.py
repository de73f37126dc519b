"""Moved to `namm_transfer.evals.report`."""

from namm_transfer._moved import moved

moved(__name__, "namm_transfer.evals.report")
