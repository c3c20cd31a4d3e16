"""The vault: issues tokens, checks each use against the token's domain, and hands out the card behind one.

`awaited` has the methods of `AsyncVault`: each checks its arguments and awaits a flow. `blocking`, with `Vault`, is
generated from it. The flows are coroutines over the ports: `issue`, `use` (check and detokenize), `manage` (status,
domain and card), `history`, and `batch` for many items at once. `core` is what they share; `open`, `provision` and
`face` are the life of a vault.
"""
