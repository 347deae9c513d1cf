"""Profile handlers: which profiles run, and whose result is primary."""
