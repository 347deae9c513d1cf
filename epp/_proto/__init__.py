"""Generated from proto/ by `make proto`; never edited. Only epp.extproc and epp.server import it."""
