"""Fakes and checks for tests, ours and other people's: builders, `check_scorer`, an Envoy client, a model server."""
