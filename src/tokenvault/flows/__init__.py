"""Flows: one coroutine a task, over the ports; the only place where steps are put in order."""
