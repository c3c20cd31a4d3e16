"""The audit trail as it is read: single events, verification, export."""
