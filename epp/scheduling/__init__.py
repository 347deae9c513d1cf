"""Core: choosing endpoints. The framework knows no opinion; plugins hold them (epp.plugins)."""
