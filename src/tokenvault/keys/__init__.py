"""Key stores: the port and its adapters."""
