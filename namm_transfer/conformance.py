"""Moved to `namm_transfer.testing`."""

from namm_transfer._moved import moved

moved(__name__, "namm_transfer.testing")
