"""The vault: what its calls do, and its blocking and its awaited face."""
