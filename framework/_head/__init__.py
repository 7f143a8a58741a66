"""The head: the one service of a cluster that knows its members, actors and jobs."""
