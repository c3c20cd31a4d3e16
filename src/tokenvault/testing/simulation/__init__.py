"""Deterministic simulation of vaults over one store: what may go wrong between them does, and a model looks on.

    simulate(12345)   # returns what happened, or raises PropertyViolatedError with the seed and the schedule

Callers make a few calls to two vaults. Between any two suspensions of a call another may go on; writes fail before or
after they happened, or happen later; answers are lost, the key store fails, vaults are killed, calls are cancelled,
clocks move. All of it follows from the seed, so a seed that fails is replayed by the same line.

- `world`: the scheduler; `ports`: what a vault reaches; `tasks`: what runs.
- `calls`: the operations, each stated once in a table, and the callers.
- `properties`: what must hold, each stated once in a table; `vault_model` is the model they look by.
"""
