"""Timings against peers; one file a journey, each run as `python -m benchmarks.NAME`. Never a test."""
