"""Takes the code cells out of the seed documents at run time, adapts them and runs them.

`PYTHONPATH=tests/seeds python -m seed_harness` lists the cells. Modules: `documents` (where they are, who
reads which), `extract` (text in, cells out), `rewrite` (import, sleeps, magics), `catalogue` and `digests`
(what is known of single cells), `plan` (both put together), `session` (namespace and execution),
`isolated` (cells that need a process of their own).
"""
