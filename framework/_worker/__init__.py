"""The worker process: runs user code."""
