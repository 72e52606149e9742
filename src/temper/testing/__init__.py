"""The conformance suite: what must hold for every technique, runtime and search, as functions that plug authors call.

    from temper.testing import runtimes, searches, techniques

    def test_mine() -> None:
        techniques.check(MyTechnique)

Each check raises AssertionError with a sentence that says what does not hold; none needs a test framework.
"""
