"""Measure servers from outside, over HTTP on this machine only. Imports nothing of ours."""
