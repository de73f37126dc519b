"""Moved to `namm_transfer.training.rl.collect`."""

from namm_transfer._moved import moved

moved(__name__, "namm_transfer.training.rl.collect")
