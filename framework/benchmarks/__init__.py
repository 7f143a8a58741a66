"""Benchmarks: the workloads of Ray's published microbenchmark, their floors, and the same rows for peers.

Run them with ``python -m framework.benchmarks``; compare two results with
``python -m framework.benchmarks.compare``.
``docs/benchmarks.md`` says what each row does and how its figure is to be read.
"""
