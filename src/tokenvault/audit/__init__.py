"""The audit trail: events, how they are written, verification, export."""
