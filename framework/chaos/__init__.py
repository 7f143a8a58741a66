"""Chaos: real processes of a cluster are killed and stopped at random while work of every kind goes on.

``python -m framework.chaos --duration 300 --seed 7`` starts a cluster on this machine, keeps workloads
running in it, and sends SIGKILL and SIGSTOP to workers, nodes and the head every few seconds. Nothing may be
lost, wrong, or hang, and nothing may be left afterwards. What errors are permitted, and why, is in `ledger`;
docs/design/chaos.md has the rest.
"""
