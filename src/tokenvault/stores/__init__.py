"""Token stores: the port and its adapters."""
