"""State machines without I/O: methods take what happened and return what to do."""
