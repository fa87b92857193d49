"""The production core under a virtual clock: what a policy does to a workload, before it is set."""
